"""Deleted studies, and teams with whom studies are shared. Going down shows deleted studies again, and unshares all."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "deletions",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("deleted_by", sa.Text(), nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=False),
        sa.Column("purge_at", INSTANT, nullable=False),
        sa.Column("purging_at", INSTANT),
        sa.Column("purged_at", INSTANT),
        sa.Column("next_attempt", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("study", name="pk_deletions"),
    )
    op.create_table(
        "team_members",
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("team", "member", name="pk_team_members"),
    )
    op.create_index("ix_team_members_member", "team_members", ["member"])
    op.create_table(
        "shares",
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study", "team", name="pk_shares"),
    )
    op.create_index("ix_shares_team", "shares", ["team"])


def downgrade() -> None:
    for table in ("shares", "team_members", "deletions"):
        op.drop_table(table)
