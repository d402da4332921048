"""Tokens of the service, and the studies that it has queued."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.CheckConstraint("scope IN ('read', 'write')", name="ck_tokens_scope"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    op.create_index("ix_tokens_owner", "tokens", ["owner"])
    op.create_table(
        "queue",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("first_hash", sa.Text(), nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("worker", sa.Text()),
        sa.Column("lease_until", INSTANT),
        sa.Column("job", sa.Text()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_attempt", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("source", sa.JSON()),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'complete', 'failed', 'cancelled')", name="ck_queue_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_queue"),
        sa.UniqueConstraint("study", name="uq_queue_study"),
        sa.UniqueConstraint("owner", "key", name="uq_queue_owner_key"),
    )
    op.create_index("ix_queue_state_id", "queue", ["state", "id"])
    op.create_index("ix_queue_owner_id", "queue", ["owner", "id"])


def downgrade() -> None:
    op.drop_table("queue")
    op.drop_table("tokens")
