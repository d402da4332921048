"""Commands for people who sign in to the page with an identity provider."""

from typing import Annotated

import typer

from services.cli import lazy_modules as lazy
from services.cli.console import USAGE, JsonOption, fail, installation, print_json, print_line, print_table, table
from services.cli.operating.account_commands import operator

people = typer.Typer(help="Manage people who sign in with an identity provider.", no_args_is_help=True)
_COLUMNS = ("owner", "subject", "issuer", "scope", "last sign-in (UTC)", "state")

OwnerArgument = Annotated[str, typer.Argument(help="Owner whom the person is.")]


@people.command("add", epilog="Example: nas-blockout person add ann --subject 248289761001")
def add_person(
    owner: OwnerArgument,
    subject: Annotated[str, typer.Option("--subject", help="What the provider knows the person by: the claim `sub`.")],
    issuer: Annotated[
        str | None, typer.Option("--issuer", help="The provider. [default: NAS_BLOCKOUT_OIDC_ISSUER]")
    ] = None,
) -> None:
    """Let a person sign in as an owner, also as one that has tokens and studies."""
    settings = installation()
    found = issuer or (settings.sign_in.issuer if settings.sign_in is not None else None)
    if found is None:
        fail(USAGE, "NAS_BLOCKOUT_OIDC_ISSUER is not set: name the provider with --issuer")
    with lazy.store.Store.open(settings.store_url) as store, lazy.store.acting(operator()):
        try:
            store.add_person(lazy.store.Identity(found, subject), owner=owner)
        except ValueError as error:
            fail(USAGE, str(error))
    print_line(f"{subject} of {found} signs in as {owner}")


@people.command("list", epilog="Example: nas-blockout person list")
def list_people(as_json: JsonOption = False) -> None:
    """List who may sign in, and as which owner."""
    with lazy.store.Store.open(installation().store_url) as store:
        rows = store.people()
    told = [
        {
            "owner": row.owner,
            "subject": row.identity.subject,
            "issuer": row.identity.issuer,
            "scope": row.scope,
            "signed_in_at": row.signed_in_at.isoformat() if row.signed_in_at else None,
            "disabled": row.disabled_at is not None,
            "token": row.token,
        }
        for row in rows
    ]
    if as_json:
        print_json(told)
    elif rows:
        cells = (
            (
                *(row.owner, row.identity.subject, row.identity.issuer, row.scope),
                f"{row.signed_in_at:%Y-%m-%d %H:%M}" if row.signed_in_at else "never",
                "disabled" if row.disabled_at else "may sign in",
            )
            for row in rows
        )
        print_table(table(_COLUMNS, cells))
    else:
        print_line("Nobody has signed in yet; add somebody with `nas-blockout person add OWNER --subject SUBJECT`.")


@people.command("disable", epilog="Example: nas-blockout person disable ann")
def disable_person(owner: OwnerArgument) -> None:
    """Shut a person out at once: all tokens of the owner are revoked, and the sessions end."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        store.disable_person(owner)
    print_line(f"{owner} is disabled, and all tokens of {owner} are revoked")


@people.command("enable", epilog="Example: nas-blockout person enable ann")
def enable_person(owner: OwnerArgument) -> None:
    """Let a disabled person sign in again. Tokens with a secret stay revoked."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        store.enable_person(owner)
    print_line(f"{owner} may sign in again")


@people.command("remove", epilog="Example: nas-blockout person remove ann")
def remove_person(owner: OwnerArgument) -> None:
    """Let nobody sign in as an owner any more; studies, tokens with a secret and the name stay the owner's."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        store.remove_person(owner)
    print_line(f"nobody signs in as {owner} any more")
