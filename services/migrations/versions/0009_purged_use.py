"""What purged studies have used. Going down gives it back to their owners."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "purged_use",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("day", INSTANT, nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", name="pk_purged_use"),
    )


def downgrade() -> None:
    op.drop_table("purged_use")
