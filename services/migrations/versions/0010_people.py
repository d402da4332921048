"""People who sign in with an identity provider. Going down forgets them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "people",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("token_id", KEY, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("signed_in_at", INSTANT),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_people"),
        sa.UniqueConstraint("owner", name="uq_people_owner"),
    )
    op.create_index("ix_people_token_id", "people", ["token_id"])
    op.create_table(
        "sign_ins",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_sign_ins"),
    )
    op.create_index("ix_sign_ins_expires_at", "sign_ins", ["expires_at"])


def downgrade() -> None:
    # What people signed in with is no token of an older release, which knows none without a secret.
    tokens, people = sa.table("tokens", sa.column("id")), sa.table("people", sa.column("token_id"))
    sessions, ids = sa.table("web_sessions", sa.column("token_id")), sa.select(people.c.token_id)
    op.execute(sa.delete(sessions).where(sessions.c.token_id.in_(ids)))
    op.execute(sa.delete(tokens).where(tokens.c.id.in_(ids)))
    for table in ("sign_ins", "people"):
        op.drop_table(table)
