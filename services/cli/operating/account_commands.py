"""Commands for teams and the audit log, and how the audit log names an operator."""

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import lazy_modules as lazy
from services.cli.console import USAGE, JsonOption, fail, installation, print_json, print_line, print_table, table

if TYPE_CHECKING:
    from services.store import Actor

teams = typer.Typer(help="Manage teams, with which owners share studies.", no_args_is_help=True)
_COLUMNS = ("at (UTC)", "actor", "token", "action", "subject", "detail")

TeamArgument = Annotated[str, typer.Argument(help="Name of the team.")]
MembersArgument = Annotated[list[str], typer.Argument(help="Owners, as of their tokens.")]


def operator() -> "Actor":
    """Return who runs a command, as the audit log names it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = "unknown"
    return lazy.store.Actor(f"operator {user}")


@teams.command("add", epilog="Example: nas-blockout team add vision ann bob")
def add_members(team: TeamArgument, members: MembersArgument) -> None:
    """Add owners to a team, which is created by its first member."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        try:
            for member in members:
                store.add_member(team, member)
        except ValueError as error:
            fail(USAGE, str(error))
    print_line(f"{', '.join(members)} belong to team {team}")


@teams.command("remove", epilog="Example: nas-blockout team remove vision bob")
def remove_members(team: TeamArgument, members: MembersArgument) -> None:
    """Remove owners from a team; without members, it exists no longer."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        for member in members:
            store.remove_member(team, member)
    print_line(f"{', '.join(members)} belong to team {team} no longer")


@teams.command("list", epilog="Example: nas-blockout team list")
def list_teams(as_json: JsonOption = False) -> None:
    """List all teams with their members."""
    with lazy.store.Store.open(installation().store_url) as store:
        found = store.teams()
    if as_json:
        print_json({team: list(members) for team, members in found.items()})
    elif found:
        print_table(table(("team", "members"), ((team, ", ".join(members)) for team, members in found.items())))
    else:
        print_line("There are no teams yet; create one with `nas-blockout team add TEAM OWNER`.")


def audit(
    actor: Annotated[str | None, typer.Option("--actor", help="List only what this owner or operator did.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="List only this action, such as delete.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="List only this study, token or team.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Number of rows.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List who did what in the service, newest first."""
    with lazy.store.Store.open(installation().store_url) as store:
        rows = store.audit_log(actor=actor, action=action, subject=subject, limit=limit)
    if as_json:
        names = ("id", "actor", "token", "action", "subject")
        print_json(
            [
                {name: getattr(row, name) for name in names} | {"at": row.at.isoformat(), "detail": dict(row.detail)}
                for row in rows
            ]
        )
        return
    cells = (
        (
            *(
                f"{row.at:%Y-%m-%d %H:%M:%S}",
                row.actor,
                "-" if row.token is None else row.token,
                row.action,
                row.subject,
            ),
            ", ".join(f"{key}={value}" for key, value in row.detail.items()),
        )
        for row in rows
    )
    print_table(table(_COLUMNS, cells))
