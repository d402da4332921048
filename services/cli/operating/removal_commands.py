"""Commands that delete studies, restore them, and purge what is left of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import lazy_modules as lazy
from services.cli.console import (
    JsonOption,
    StoredArgument,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)
from services.cli.operating.account_commands import operator

if TYPE_CHECKING:
    from services.store import DeletedRow

_DAY_SECONDS = 86_400.0
_COLUMNS = ("study", "owner", "deleted by", "deleted (UTC)", "purged from (UTC)")
_MINUTE = "%Y-%m-%d %H:%M"


def delete(
    study: StoredArgument,
    now: Annotated[bool, typer.Option("--now", help="Purge it at once: it cannot be restored.")] = False,
) -> None:
    """Delete a study that has ended; it can be restored for NAS_BLOCKOUT_DELETE_GRACE_DAYS.

    Then the worker of the service, or `nas-blockout purge`, removes its files, its rows and its MLflow runs, and its
    name is free.
    """
    settings = installation()
    grace = _DAY_SECONDS * settings.delete_grace_days
    with lazy.store.Store.open(settings.store_url) as store, lazy.store.acting(operator()):
        deleted = store.delete_study(study, grace_seconds=grace, by=operator().name)
        if now:
            lazy.removal.purge(settings, store, study, early=True)
    if now:
        print_line(f"study {study} is purged; its name is free")
    else:
        until = f"{deleted.purge_at:{_MINUTE}} UTC"
        print_line(f"study {study} is deleted; `nas-blockout restore {study}` restores it until {until}")


def restore(study: StoredArgument) -> None:
    """Restore a deleted study that has not been purged."""
    with lazy.store.Store.open(installation().store_url) as store, lazy.store.acting(operator()):
        store.restore_study(study)
    print_line(f"study {study} is restored")


def purge(
    pending: Annotated[
        bool, typer.Option("--list", help="Only list the deleted studies that can still be restored.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Purge deleted studies whose grace time is over: their files, rows and MLflow runs. The worker does so, too."""
    settings = installation()
    with lazy.store.Store.open(settings.store_url) as store:
        if not pending:
            with lazy.store.acting(operator()):
                purged = [study for study in store.due_for_purge() if lazy.removal.purge(settings, store, study)]
            for study in purged:
                log(f"study {study} is purged; its name is free")
        rows = store.deleted_studies()
    if as_json:
        print_json(deleted_json(rows))
    elif rows:
        print_deleted(rows)
    else:
        print_line("There are no deleted studies.")


def deleted_json(rows: Iterable["DeletedRow"]) -> list[dict[str, Any]]:
    """Return deleted studies as plain JSON types."""
    return [
        {"study": row.study, "owner": row.owner, "deleted_by": row.deleted_by}
        | {key: getattr(row, key).isoformat() for key in ("deleted_at", "purge_at")}
        for row in rows
    ]


def print_deleted(rows: Iterable["DeletedRow"]) -> None:
    """Print deleted studies with the time from which each is purged."""
    cells = (
        (row.study, row.owner or "-", row.deleted_by, f"{row.deleted_at:{_MINUTE}}", f"{row.purge_at:{_MINUTE}}")
        for row in rows
    )
    print_table(table(_COLUMNS, cells, title="deleted studies that can be restored"))
