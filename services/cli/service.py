"""Commands that operate the service: run its two processes, manage user tokens, migrate the database."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli import lazy_modules as lazy
from services.cli.console import (
    USAGE,
    JsonOption,
    fail,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)
from services.cli.operating.account_commands import operator
from services.settings import SettingsError

if TYPE_CHECKING:
    from services.store import TokenRow

MOST_DAYS = 3650
tokens = typer.Typer(help="Create, list and revoke API tokens.", no_args_is_help=True)
tables = typer.Typer(help="Show, upgrade or downgrade the schema of the store's database.", no_args_is_help=True)
_COLUMNS = ("id", "owner", "scope", "name", "created", "expires", "state")


def serve(
    what: Annotated[
        Literal["api", "worker"],
        typer.Argument(help="`api` serves the HTTP API and the web page; `worker` runs queued studies."),
    ] = "api",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 8080,
) -> None:
    """Serve the HTTP API and the web page, or run the worker that executes queued studies.

    Both run until they are interrupted or terminated. The API needs NAS_BLOCKOUT_API_TOKEN, the worker
    NAS_BLOCKOUT_JOBS_ADDRESS.
    """
    settings = installation()
    if what == "worker":
        lazy.dispatch.work(settings, log=log)
        return
    if settings.api_token is None:
        raise SettingsError(
            "NAS_BLOCKOUT_API_TOKEN is not set, but the service needs it for its sessions; make one: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    lazy.api.run(settings, host=host, port=port, log=log)


@tokens.command("create", epilog="Example: nas-blockout token create --owner ann --scope write --expires-days 90")
def create_token(
    owner: Annotated[
        str, typer.Option("--owner", help="Owner whose studies the token gives access to.", metavar="NAME")
    ],
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(
            "--scope",
            help="`write` also allows submitting, changing and deleting; `admin` does so with those of all owners.",
        ),
    ] = "read",
    name: Annotated[str, typer.Option("--name", help="A note on what the token is for.", metavar="TEXT")] = "",
    expires_days: Annotated[
        int | None,
        typer.Option("--expires-days", min=1, max=MOST_DAYS, help="Days until the token expires. [default: never]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token and show its secret once; only its hash is stored."""
    expires_at = datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        try:
            row, secret = store.create_token(name, owner=owner, scope=scope, expires_at=expires_at)
        except ValueError as error:
            fail(USAGE, str(error))
    if as_json:
        print_json({**_token_json(row), "secret": secret})
        return
    log(f"token {row.id} for {row.owner}, scope {row.scope}; the secret is shown only once:")
    print_line(secret)


@tokens.command("list", epilog="Example: nas-blockout token list --owner ann")
def list_tokens(
    owner: Annotated[
        str | None, typer.Option("--owner", help="List only the tokens of this owner.", metavar="NAME")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List all tokens, including expired and revoked ones. Secrets are never shown."""
    with lazy.store.Store.open(installation().store_url) as store:
        rows = store.tokens(owner)
    if as_json:
        print_json([_token_json(row) for row in rows])
    elif rows:
        print_table(table(_COLUMNS, map(_cells, rows)))
    else:
        print_line("There are no tokens yet; create one with `nas-blockout token create --owner NAME`.")


@tokens.command("revoke", epilog="Example: nas-blockout token revoke 3")
def revoke_token(
    token: Annotated[int, typer.Argument(help="Token id, as shown by `nas-blockout token list`.")],
) -> None:
    """Revoke a token immediately; web sessions that were opened with it end too."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        row = store.revoke_token(token)
    print_line(f"token {row.id} of {row.owner} is revoked")


@tables.command("current", epilog="Example: nas-blockout db current")
def current_version(as_json: JsonOption = False) -> None:
    """Show the schema version of the database and the version that this release uses. Nothing is changed."""
    version, newest = lazy.schema_version.current(installation().store_url), lazy.migrations.HEAD
    if as_json:
        print_json({"version": version, "newest": newest})
    else:
        print_line(f"{version or 'no tables'}; this release uses {newest}")


@tables.command("upgrade", epilog="Example: nas-blockout db upgrade")
def upgrade_tables() -> None:
    """Create the tables, or upgrade them to the schema version of this release. No data is lost.

    Every other command does the same when it opens the store.
    """
    print_line(f"the database has schema version {lazy.schema_version.upgrade(installation().store_url)}")


@tables.command("downgrade", epilog="Example: nas-blockout db downgrade 0002 --yes")
def downgrade_tables(
    version: Annotated[str, typer.Argument(help="Schema version, such as 0001, which has neither queue nor tokens.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Confirm that data which only newer versions can hold will be lost.")
    ] = False,
) -> None:
    """Downgrade the tables before going back to an older release. Data that only newer versions can hold is lost."""
    if not yes:
        fail(USAGE, f"version {version} cannot hold all data of newer versions: back up the database, then add --yes")
    lazy.schema_version.downgrade(installation().store_url, version)
    print_line(f"the database has schema version {version}; any command of this release will upgrade it again")


def _state(row: "TokenRow") -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "ended" if row.expires_at is not None and row.expires_at <= datetime.now(UTC) else "valid"


def _cells(row: "TokenRow") -> tuple[object, ...]:
    expires = f"{row.expires_at:%Y-%m-%d}" if row.expires_at else "never"
    state = "expired" if _state(row) == "ended" else _state(row)
    return (row.id, row.owner, row.scope, row.name, f"{row.created_at:%Y-%m-%d}", expires, state)


def _token_json(row: "TokenRow") -> dict[str, Any]:
    moments = {
        key: moment.isoformat() if (moment := getattr(row, key)) else None
        for key in ("created_at", "expires_at", "revoked_at")
    }
    return {"id": row.id, "owner": row.owner, "scope": row.scope, "name": row.name, **moments, "state": _state(row)}
