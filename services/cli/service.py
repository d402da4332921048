"""Commands of the service: its two processes, the tokens of its users, the tables of its database."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import typer

from services.cli.console import USAGE, JsonOption, fail, installation, log, print_json, print_line, print_table, table
from services.settings import SettingsError

MOST_DAYS = 3650
tokens = typer.Typer(help="Make, list and revoke the tokens with which the service is used.", no_args_is_help=True)
tables = typer.Typer(
    help="Bring the tables of the store up to date, or down to an older version.", no_args_is_help=True
)
_COLUMNS = ("id", "owner", "scope", "name", "made", "ends", "state")


def serve(
    what: Annotated[
        Literal["api", "worker"],
        typer.Argument(help="`api` answers requests and shows the page; `worker` sees queued studies through."),
    ] = "api",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 8080,
) -> None:
    """Serve the HTTP API and the page, or be the worker that runs what the API has queued.

    Both go on until they are interrupted or terminated. The API needs NAS_BLOCKOUT_API_TOKEN, the worker
    NAS_BLOCKOUT_JOBS_ADDRESS.
    """
    settings = installation()
    if what == "worker":
        from services.dispatch import work

        work(settings, log=log)
        return
    if settings.api_token is None:
        raise SettingsError(
            "NAS_BLOCKOUT_API_TOKEN is not set: the service signs its sessions with it; make one: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    from services.api import run

    run(settings, host=host, port=port, log=log)


@tokens.command("create")
def create_token(
    owner: Annotated[str, typer.Option("--owner", help="Whose studies it gives access to.", metavar="NAME")],
    scope: Annotated[
        Literal["read", "write"], typer.Option("--scope", help="`write` may also submit, cancel, resume and extend.")
    ] = "read",
    name: Annotated[str, typer.Option("--name", help="What it is for.", metavar="TEXT")] = "",
    expires_days: Annotated[
        int | None, typer.Option("--expires-days", min=1, max=MOST_DAYS, help="Days until it ends; never if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and show its secret, this once: only its hash is kept."""
    expires_at = datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None
    with _store() as store:
        try:
            row, secret = store.create_token(name, owner=owner, scope=scope, expires_at=expires_at)
        except ValueError as error:
            fail(USAGE, str(error))
    if as_json:
        print_json({**_token_json(row), "secret": secret})
        return
    log(f"token {row.id} of {row.owner}, scope {row.scope}; its secret is not shown again:")
    print_line(secret)


@tokens.command("list")
def list_tokens(
    owner: Annotated[str | None, typer.Option("--owner", help="Only those of one owner.", metavar="NAME")] = None,
    as_json: JsonOption = False,
) -> None:
    """List tokens, ended and revoked ones too; never a secret."""
    with _store() as store:
        rows = store.tokens(owner)
    if as_json:
        print_json([_token_json(row) for row in rows])
    elif rows:
        print_table(table(_COLUMNS, map(_cells, rows)))
    else:
        print_line("there is no token; `nas-blockout token create --owner NAME` makes one")


@tokens.command("revoke")
def revoke_token(token: Annotated[int, typer.Argument(help="Its id, as `token list` shows it.")]) -> None:
    """End a token at once; sessions of the page that were opened with it end too."""
    with _store() as store:
        row = store.revoke_token(token)
    print_line(f"token {row.id} of {row.owner} is revoked")


@tables.command("current")
def current_version(as_json: JsonOption = False) -> None:
    """Say which version the tables have, and which this release uses; nothing is changed."""
    from services import migrations
    from services.store import schema_version

    found = schema_version.current(installation().store_url)
    if as_json:
        print_json({"version": found, "newest": migrations.HEAD})
    else:
        print_line(f"{found or 'no tables'}; this release uses {migrations.HEAD}")


@tables.command("upgrade")
def upgrade_tables() -> None:
    """Bring the tables up to the version of this release, and make them where there are none; nothing is lost."""
    from services.store import schema_version

    print_line(f"the tables have version {schema_version.upgrade(installation().store_url)}")


@tables.command("downgrade")
def downgrade_tables(
    version: Annotated[str, typer.Argument(help="Such as 0001, which has neither queue nor tokens.")],
    yes: Annotated[bool, typer.Option("--yes", help="Lose what only newer versions hold.")] = False,
) -> None:
    """Take the tables down to an older version, before an older release is used: what only newer ones hold is lost."""
    from services.store import schema_version

    if not yes:
        fail(USAGE, f"what the tables of {version} cannot hold is lost: back the database up, then add --yes")
    schema_version.downgrade(installation().store_url, version)
    print_line(f"the tables have version {version}; commands of this release bring them up again")


def _store() -> Any:
    from services.store import Store

    return Store.open(installation().store_url)


def _state(row: Any) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "ended" if row.expires_at is not None and row.expires_at <= datetime.now(UTC) else "valid"


def _cells(row: Any) -> tuple[object, ...]:
    ends = f"{row.expires_at:%Y-%m-%d}" if row.expires_at else "never"
    return (row.id, row.owner, row.scope, row.name, f"{row.created_at:%Y-%m-%d}", ends, _state(row))


def _token_json(row: Any) -> dict[str, Any]:
    moments = {
        key: moment.isoformat() if (moment := getattr(row, key)) else None
        for key in ("created_at", "expires_at", "revoked_at")
    }
    return {"id": row.id, "owner": row.owner, "scope": row.scope, "name": row.name, **moments, "state": _state(row)}
