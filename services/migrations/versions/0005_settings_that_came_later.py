"""Recorded experiments get the settings that came after them, with the values that stand for what was before.

Version 2 has been at work for some time before its first release. What a setting is by default may have changed since a
study was stored (`dropout` acted on all layers before it had a `placement`), and so may how its hash is made. The way
down leaves the documents as they are: releases that read version 2 read these, too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

from services.renamed_keys import study_hash, upgraded_experiment

revision = "0005"
down_revision = "0004"

Document = dict[str, Any]
Change = Callable[[Document], Document]
BATCH_ROWS = 500
JSON = sa.JSON(none_as_null=True)
STUDIES = sa.table("studies", sa.column("id"), sa.column("config", JSON), sa.column("config_hash"))
EVENTS = sa.table("events", sa.column("id"), sa.column("detail", JSON))
TRIALS = sa.table("trials", sa.column("id"), sa.column("experiment", JSON))
QUEUE = sa.table(
    "queue", sa.column("id"), sa.column("config_hash"), sa.column("first_hash"), sa.column("document", JSON)
)


def upgrade() -> None:
    new_hashes: dict[str, str] = {}
    _rewrite(STUDIES, lambda row: _upgraded(row, "config", new_hashes))
    _rewrite(EVENTS, lambda row: _upgraded_event(row, new_hashes))
    _rewrite(TRIALS, lambda row: {"experiment": upgraded_experiment(row["experiment"])})
    _rewrite(QUEUE, lambda row: _upgraded(row, "document", new_hashes))
    _rewrite(QUEUE, lambda row: {"first_hash": new_hashes.get(row["first_hash"], row["first_hash"])})


def downgrade() -> None:
    pass


def _rewrite(table: sa.TableClause, change: Change) -> None:
    """Apply a change to every row of a table, a batch at a time; rows that stay as they are are not written."""
    connection, last = op.get_bind(), 0
    new: dict[str, Any] = {column.name: sa.bindparam(f"new_{column.name}") for column in table.c}
    key = new.pop("id")
    update = sa.update(table).where(table.c.id == key).values(new)
    while rows := list(_rows(connection, table, last)):
        changed = [after for row in rows if (after := {**row, **change(row)}) != row]
        if changed:
            connection.execute(update, [{f"new_{name}": row[name] for name in row} for row in changed])
        last = rows[-1]["id"]


def _rows(connection: sa.Connection, table: sa.TableClause, last: int) -> Iterator[Document]:
    query = sa.select(table).where(table.c.id > last).order_by(table.c.id).limit(BATCH_ROWS)
    yield from (dict(row) for row in connection.execute(query).mappings())


def _upgraded(row: Document, key: str, new_hashes: dict[str, str]) -> Document:
    """Upgrade the resolved study under a key and the hash that follows from it; what is no such study stays."""
    document = row[key]
    arms = document.get("arms") if isinstance(document, dict) else None
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) and _is_read(arm) for arm in arms.values()):
        return {}
    document = {
        **document,
        "arms": {name: {**arm, "experiment": upgraded_experiment(arm["experiment"])} for name, arm in arms.items()},
    }
    new_hash = study_hash(document)
    new_hashes[row["config_hash"]] = new_hash
    return {key: document, "config_hash": new_hash}


def _is_read(arm: Document) -> bool:
    return isinstance(arm.get("experiment"), dict)


def _upgraded_event(row: Document, new_hashes: dict[str, str]) -> Document:
    detail = row["detail"]
    return {"detail": {**detail, **_upgraded(detail, "config", new_hashes)}} if "config" in detail else {}
