"""The names of version 2: a column is renamed, and stored studies and trials get the keys of `services.renamed_keys`.

The way down gives the column its old name back. Documents keep the names of version 2, which releases before this
migration cannot read; whoever goes back to one of them restores a backup from before the upgrade.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

from services.renamed_keys import study_hash, upgraded_experiment, upgraded_params, upgraded_study

revision = "0003"
down_revision = "0002"

Document = dict[str, Any]
Change = Callable[[Document], Document]
BATCH_ROWS = 500  # a trial's documents take some kilobytes, and a store may hold 100,000 trials
JSON = sa.JSON(none_as_null=True)  # otherwise None would be written as JSON's null, which is not SQL's NULL
STUDIES = sa.table("studies", sa.column("id"), sa.column("config", JSON), sa.column("config_hash"))
EVENTS = sa.table("events", sa.column("id"), sa.column("detail", JSON))
TRIALS = sa.table("trials", sa.column("id"), sa.column("params", JSON), sa.column("experiment", JSON))
QUEUE = sa.table(
    "queue",
    sa.column("id"),
    sa.column("config_hash"),
    sa.column("first_hash"),
    sa.column("document", JSON),
    sa.column("source", JSON),
)


def upgrade() -> None:
    op.alter_column("trials", "thinking_seconds", new_column_name="suggest_seconds")
    new_hashes: dict[str, str] = {}
    _rewrite(STUDIES, lambda row: _upgraded(row, "config", new_hashes))
    _rewrite(EVENTS, lambda row: _upgraded_event(row, new_hashes))
    _rewrite(TRIALS, _upgraded_trial)
    _rewrite(QUEUE, lambda row: _upgraded(row, "document", new_hashes))
    # A study that was extended is in the queue with the hash of its first request as well, but without that request's
    # document. The events of the study have it, so that only now all new hashes are known.
    _rewrite(QUEUE, lambda row: _upgraded_request(row, new_hashes))


def downgrade() -> None:
    op.alter_column("trials", "suggest_seconds", new_column_name="thinking_seconds")


def _rewrite(table: sa.TableClause, change: Change) -> None:
    """Apply a change to every row of a table, a batch at a time; rows that stay as they are are not written."""
    connection, last = op.get_bind(), 0
    new: dict[str, Any] = {column.name: sa.bindparam(f"new_{column.name}") for column in table.c}
    key = new.pop("id")
    update = sa.update(table).where(table.c.id == key).values(new)
    while True:
        query = sa.select(table).where(table.c.id > last).order_by(table.c.id).limit(BATCH_ROWS)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        if not rows:
            return
        changed = [after for row in rows if (after := {**row, **change(row)}) != row]
        if changed:
            connection.execute(update, [{f"new_{name}": row[name] for name in row} for row in changed])
        last = rows[-1]["id"]


def _upgraded(row: Document, key: str, new_hashes: dict[str, str]) -> Document:
    """Upgrade the study under a key and the hash that follows from it, as `Study.hash` has it."""
    document = upgraded_study(row[key])
    if document == row[key]:  # of version 2 already, or not a study
        return {}
    new_hash = study_hash(document)
    new_hashes[row["config_hash"]] = new_hash
    return {key: document, "config_hash": new_hash}


def _upgraded_event(row: Document, new_hashes: dict[str, str]) -> Document:
    """Upgrade what a study was before it was extended, which the event of its extension holds."""
    detail = row["detail"]
    return {"detail": {**detail, **_upgraded(detail, "config", new_hashes)}} if "config" in detail else {}


def _upgraded_trial(row: Document) -> Document:
    return {"params": upgraded_params(row["params"]), "experiment": upgraded_experiment(row["experiment"])}


def _upgraded_request(row: Document, new_hashes: dict[str, str]) -> Document:
    """Upgrade what was first asked for: the study as it was written, and the hash by which a repetition is known."""
    source = row["source"]
    return {
        "source": None if source is None else upgraded_study(source),
        "first_hash": new_hashes.get(row["first_hash"], row["first_hash"]),
    }
