"""A UUID for the store and for each study, by which MLflow and shared storage tell studies of one name apart.

Going down drops all of them: coming up again draws others.
"""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

IDENTITY = sa.table("identity", sa.column("id"), sa.column("uuid"))
STUDIES = sa.table("studies", sa.column("id"), sa.column("uuid"))


def upgrade() -> None:
    op.create_table(
        "identity",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_identity_one_row"),
        sa.PrimaryKeyConstraint("id", name="pk_identity"),
    )
    op.execute(sa.insert(IDENTITY).values(id=1, uuid=str(uuid.uuid4())))
    # Nullable, since SQLite would have to copy the table to make it otherwise; `create_study` always writes one.
    op.add_column("studies", sa.Column("uuid", sa.Text()))
    connection = op.get_bind()
    for study in connection.scalars(sa.select(STUDIES.c.id)).all():
        connection.execute(sa.update(STUDIES).where(STUDIES.c.id == study).values(uuid=str(uuid.uuid4())))
    op.create_index("ix_studies_uuid", "studies", ["uuid"], unique=True)


def downgrade() -> None:
    op.drop_index("ix_studies_uuid", "studies")
    op.drop_column("studies", "uuid")
    op.drop_table("identity")
