"""The names of version 2: a column is renamed, and stored studies and trials get the keys of `services.renamed_keys`.

The way down gives the column its old name back and leaves the documents as they are: nothing in them is lost.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import RowMapping

from services.renamed_keys import upgraded_experiment, upgraded_params, upgraded_study

revision = "0003"
down_revision = "0002"

Document = dict[str, Any]
ROWS = 500  # read at a time: a trial's documents are some kilobytes
NOT_DECIDING = frozenset({"workers", "question", "export"})
STUDIES = sa.table("studies", sa.column("id"), sa.column("config", sa.JSON), sa.column("config_hash"))
EVENTS = sa.table("events", sa.column("id"), sa.column("detail", sa.JSON))
TRIALS = sa.table("trials", sa.column("id"), sa.column("params", sa.JSON), sa.column("experiment", sa.JSON))
QUEUE = sa.table(
    "queue",
    sa.column("id"),
    sa.column("config_hash"),
    sa.column("first_hash"),
    sa.column("document", sa.JSON),
    sa.column("source", sa.JSON),
)


def upgrade() -> None:
    op.alter_column("trials", "thinking_seconds", new_column_name="suggest_seconds")
    _rewrite(STUDIES, _study)
    _rewrite(EVENTS, _event)
    _rewrite(TRIALS, _trial)
    _rewrite(QUEUE, _queued)


def downgrade() -> None:
    op.alter_column("trials", "suggest_seconds", new_column_name="thinking_seconds")


def _rewrite(table: sa.TableClause, change: Callable[[RowMapping], Document]) -> None:
    """Apply a change to every row of a table, some at a time; rows that stay as they are are not written."""
    connection, last = op.get_bind(), 0
    while True:
        query = sa.select(table).where(table.c.id > last).order_by(table.c.id).limit(ROWS)
        rows = connection.execute(query).mappings().all()
        if not rows:
            return
        for row in rows:
            changes = {key: value for key, value in change(row).items() if value != row[key]}
            if changes:
                connection.execute(sa.update(table).where(table.c.id == row["id"]).values(changes))
        last = rows[-1]["id"]


def _study(row: RowMapping) -> Document:
    return _renamed(row["config"], row["config_hash"], "config")


def _event(row: RowMapping) -> Document:
    """A study that was extended keeps, with the event, what it was before."""
    detail = row["detail"]
    if "config" not in detail:
        return {}
    return {"detail": {**detail, **_renamed(detail["config"], detail.get("config_hash"), "config")}}


def _trial(row: RowMapping) -> Document:
    return {"params": upgraded_params(row["params"]), "experiment": upgraded_experiment(row["experiment"])}


def _queued(row: RowMapping) -> Document:
    source, changes = row["source"], _renamed(row["document"], row["config_hash"], "document")
    if row["first_hash"] == row["config_hash"]:  # it was never extended: whoever submits it again means this one
        changes["first_hash"] = changes["config_hash"]
    return changes | {"source": source and upgraded_study(source)}


def _renamed(document: Document, name: str | None, key: str) -> Document:
    """The document under its key with the name that follows from it, as `Study.hash` has it; others as they are."""
    upgraded = upgraded_study(document)
    if upgraded == document:
        return {key: document, "config_hash": name}
    deciding = {each: value for each, value in upgraded.items() if each not in NOT_DECIDING}
    text = json.dumps(deciding, sort_keys=True).encode()
    return {key: upgraded, "config_hash": hashlib.sha256(text).hexdigest()[:16]}
