"""Sessions of the web page, the audit log, and tokens of administrators.

Going down ends all sessions, drops the audit log, and leaves administrators with write access to their own studies.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _allow_scopes("scope IN ('read', 'write', 'admin')")
    op.create_table(
        "web_sessions",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("token_id", KEY, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_web_sessions"),
    )
    op.create_index("ix_web_sessions_token_id", "web_sessions", ["token_id"])
    op.create_table(
        "audit",
        sa.Column("id", KEY, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("token_id", KEY),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_subject", "audit", ["subject"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_table("web_sessions")
    tokens = sa.table("tokens", sa.column("scope"))
    op.execute(sa.update(tokens).where(tokens.c.scope == "admin").values(scope="write"))
    _allow_scopes("scope IN ('read', 'write')")


def _allow_scopes(rule: str) -> None:
    if op.get_bind().dialect.name == "sqlite":  # which changes no constraint: the table is copied, without its checks
        with op.batch_alter_table("tokens", recreate="always") as batch:
            batch.create_check_constraint(op.f("ck_tokens_scope"), rule)
        return
    op.drop_constraint("ck_tokens_scope", "tokens", type_="check")
    op.create_check_constraint(op.f("ck_tokens_scope"), "tokens", rule)
