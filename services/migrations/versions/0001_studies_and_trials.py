"""Studies, arms, trials, attempts, epochs, architectures, exports and projections."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
OF_STUDY = sa.text("trial_id IS NULL")


def upgrade() -> None:
    _create_studies()
    _create_trials()
    _create_exports_and_projections()


def _create_studies() -> None:
    op.create_table(
        "architectures",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_architectures"),
    )
    op.create_table(
        "studies",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("heartbeat_at", INSTANT),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.Column("error", sa.Text()),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "state IN ('created', 'running', 'complete', 'failed', 'cancelled')", name="ck_studies_state"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("name", name="uq_studies_name"),
    )
    op.create_index("ix_studies_state_id", "studies", ["state", "id"])
    op.create_table(
        "arms",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", KEY, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_arms_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_arms"),
        sa.UniqueConstraint("study_id", "name", name="uq_arms_study_id_name"),
    )
    op.create_table(
        "events",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", KEY, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_events_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_study_id", "events", ["study_id"])


def _create_trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", KEY, nullable=False),
        sa.Column("arm_id", KEY, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("planned", sa.BigInteger(), nullable=False),
        sa.Column("sample_passes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("thinking_seconds", sa.Double(), nullable=False),
        sa.Column("score", sa.Double()),
        sa.Column("replicate_of", sa.Integer()),
        sa.Column("architecture_hash", sa.Text()),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.Column("reason", sa.Text()),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("experiment", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON()),
        sa.CheckConstraint("phase IN ('search', 'retrain')", name="ck_trials_phase"),
        sa.CheckConstraint("state IN ('queued', 'running', 'complete', 'failed', 'pruned')", name="ck_trials_state"),
        sa.ForeignKeyConstraint(["architecture_hash"], ["architectures.hash"], name="fk_trials_architecture_hash"),
        sa.ForeignKeyConstraint(["arm_id"], ["arms.id"], name="fk_trials_arm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.UniqueConstraint("arm_id", "phase", "number", name="uq_trials_arm_id_phase_number"),
    )
    op.create_table(
        "attempts",
        sa.Column("trial_id", KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT),
        sa.Column("error", sa.Text()),
        sa.CheckConstraint("state IN ('running', 'complete', 'failed', 'lost')", name="ck_attempts_state"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_attempts_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "number", name="pk_attempts"),
    )
    op.create_table(
        "epochs",
        sa.Column("trial_id", KEY, autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("sample_passes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_epochs_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "epoch", name="pk_epochs"),
    )


def _create_exports_and_projections() -> None:
    op.create_table(
        "exports",
        sa.Column("id", KEY, nullable=False),
        sa.Column("trial_id", KEY, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("hashes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_exports_trial_id"),
        sa.PrimaryKeyConstraint("id", name="pk_exports"),
        sa.UniqueConstraint("trial_id", "path", name="uq_exports_trial_id_path"),
    )
    op.create_table(
        "projections",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", KEY, nullable=False),
        sa.Column("trial_id", KEY),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("synced_epoch", sa.Integer(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_projections_study_id"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_projections_trial_id"),
        sa.PrimaryKeyConstraint("id", name="pk_projections"),
        sa.UniqueConstraint("trial_id", "target", name="uq_projections_trial_id_target"),
    )
    op.create_index("ix_projections_study_id", "projections", ["study_id"])
    op.create_index(
        "uq_projections_of_study",
        "projections",
        ["study_id", "target"],
        unique=True,
        sqlite_where=OF_STUDY,
        postgresql_where=OF_STUDY,
    )


def downgrade() -> None:
    op.drop_table("projections")
    op.drop_table("exports")
    op.drop_table("epochs")
    op.drop_table("attempts")
    op.drop_table("trials")
    op.drop_table("events")
    op.drop_table("arms")
    op.drop_table("studies")
    op.drop_table("architectures")
