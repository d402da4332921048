"""Places in the queue: priority, when a study was queued again, what it waits for, and what a running one was given."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

INSTANT = sa.DateTime(timezone=True)
NULLABLE: dict[str, sa.types.TypeEngine[Any]] = {
    "queued_at": INSTANT,
    "set_aside_at": INSTANT,
    "position": sa.Integer(),
    "expected_at": INSTANT,
    "width": sa.Integer(),
    "started_at": INSTANT,
    "yields": sa.Text(),
}


def upgrade() -> None:
    op.add_column("queue", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    for name, kind in NULLABLE.items():
        op.add_column("queue", sa.Column(name, kind))


def downgrade() -> None:
    for name in reversed(NULLABLE):
        op.drop_column("queue", name)
    op.drop_column("queue", "priority")
