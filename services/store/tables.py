"""The tables of the store.

Short columns come first and JSON last: both databases keep long values on pages of their own, which a list of studies
then never reads.
"""

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, Dialect, ForeignKey, Index, Table, Text, UniqueConstraint

from services.store.records import ATTEMPT_STATES, PHASES, QUEUE_STATES, SCOPES, STUDY_STATES, TRIAL_STATES


class Instant(sa.types.TypeDecorator[datetime]):
    """A time-zone-aware moment in UTC; SQLite has no time zones and stores it as naive UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StudyDocument(sa.types.TypeDecorator[Any]):
    """The document of a study. One that is not a JSON object is read as an empty one, which is no study.

    Whoever reads many rows at once, such as the queue and lists, must not fail because of one of them; whoever needs
    the study of that row gets the error from the document.
    """

    impl = sa.JSON
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(none_as_null=True)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        """Return what turns a value of the database into a document."""
        read = super().result_processor(dialect, coltype)

        def tolerant(value: Any) -> Any:
            try:
                document = value if read is None else read(value)
            except ValueError:
                return {}
            return document if document is None or isinstance(document, dict) else {}

        return tolerant


def to_json_text(document: Any) -> str:
    """Return JSON; raises on NaN and infinity, which must have been replaced before."""
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


# Every constraint gets a name, the same on both databases: a migration can only drop what has one.
METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows only by an INTEGER key
_STUDY = StudyDocument()
_JSON = sa.JSON(none_as_null=True)  # None is SQL's NULL, not JSON's null


def _trial_key() -> Column[int]:  # a column belongs to one table, so that each needs its own
    return Column("trial_id", _NUMBER, ForeignKey("trials.id"), primary_key=True, autoincrement=False)


identity = Table(  # of the store itself: one row, which the migration adds
    "identity",
    METADATA,
    Column("id", sa.Integer, primary_key=True, autoincrement=False),
    Column("uuid", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

studies = Table(
    "studies",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("owner", Text),
    Column("heartbeat_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("error", Text),
    Column("uuid", Text, unique=True, index=True),  # older than the column are studies that a migration gave theirs
    Column("config", _STUDY, nullable=False),
    _one_of("state", STUDY_STATES),
    Index(None, "state", "id"),  # for lists of one state, newest first
)

events = Table(
    "events",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("study_id", _NUMBER, ForeignKey("studies.id"), nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("kind", Text, nullable=False),
    Column("detail", _JSON, nullable=False),
)

arms = Table(
    "arms",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("study_id", _NUMBER, ForeignKey("studies.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("position", sa.Integer, nullable=False),
    UniqueConstraint("study_id", "name"),
)

# Each architecture once, however many trials have it; that of a result is also in the result.
architectures = Table(
    "architectures",
    METADATA,
    Column("hash", Text, primary_key=True),
    Column("document", _JSON, nullable=False),
)

trials = Table(
    "trials",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("arm_id", _NUMBER, ForeignKey("arms.id"), nullable=False),
    Column("phase", Text, nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("seed", sa.BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("planned", sa.BigInteger, nullable=False),
    Column("sample_passes", sa.BigInteger, nullable=False),
    Column("seconds", sa.Double, nullable=False),
    Column("suggest_seconds", sa.Double, nullable=False),
    Column("score", sa.Double),
    Column("replicate_of", sa.Integer),
    Column("architecture_hash", Text, ForeignKey("architectures.hash")),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("reason", Text),
    Column("params", _JSON, nullable=False),
    Column("experiment", _JSON, nullable=False),
    Column("result", _JSON),
    UniqueConstraint("arm_id", "phase", "number"),  # makes adding a trial idempotent
    _one_of("phase", PHASES),
    _one_of("state", TRIAL_STATES),
)

attempts = Table(
    "attempts",
    METADATA,
    _trial_key(),
    Column("number", sa.Integer, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("error", Text),
    _one_of("state", ATTEMPT_STATES),
)

epochs = Table(
    "epochs",
    METADATA,
    _trial_key(),
    Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    Column("stage", Text, nullable=False),
    Column("sample_passes", sa.BigInteger, nullable=False),
    Column("seconds", sa.Double, nullable=False),
    Column("metrics", _JSON, nullable=False),
)

exports = Table(
    "exports",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("trial_id", _NUMBER, ForeignKey("trials.id"), nullable=False),
    Column("path", Text, nullable=False),
    Column("verified", sa.Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("hashes", _JSON, nullable=False),
    UniqueConstraint("trial_id", "path"),
)

projections = Table(
    "projections",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("study_id", _NUMBER, ForeignKey("studies.id"), nullable=False, index=True),
    Column("trial_id", _NUMBER, ForeignKey("trials.id")),
    Column("target", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("synced_epoch", sa.Integer, nullable=False),
    Column("done", sa.Boolean, nullable=False),
    UniqueConstraint("trial_id", "target"),
)
# A unique constraint treats NULLs as distinct, so the one row of a study as a whole needs a partial index.
_OF_STUDY = projections.c.trial_id.is_(None)
Index(
    "uq_projections_of_study",
    projections.c.study_id,
    projections.c.target,
    unique=True,
    sqlite_where=_OF_STUDY,
    postgresql_where=_OF_STUDY,
)

tokens = Table(
    "tokens",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False, index=True),
    Column("scope", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    _one_of("scope", SCOPES),
)

# A row is a session that is open: it has no state, and ends by being deleted.
web_sessions = Table(
    "web_sessions",
    METADATA,
    Column("hash", Text, primary_key=True),
    Column("token_id", _NUMBER, nullable=False, index=True),  # no foreign key: 0 is the secret of the service
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
)

# Who signs in with an identity provider. The identity is issuer and subject; the owner's name is given to it once.
people = Table(
    "people",
    METADATA,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("owner", Text, nullable=False, unique=True),
    Column("token_id", _NUMBER, nullable=False, index=True),  # a token without a secret, which only sessions have
    Column("created_at", Instant, nullable=False),
    Column("signed_in_at", Instant),
)

# A row is a way to the provider and back that has begun, and ends by being deleted: each can be used once.
sign_ins = Table(
    "sign_ins",
    METADATA,
    Column("hash", Text, primary_key=True),
    Column("expires_at", Instant, nullable=False, index=True),
)

# Refers to nothing: what it says must outlive studies and tokens.
audit = Table(
    "audit",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("at", Instant, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("token_id", _NUMBER),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False, index=True),
    Column("detail", _JSON, nullable=False),
)

# By name, since a study may be in the queue, among the studies, or both. A row with `purged_at`, which restoring
# it sets as well, says only which numbers of jobs were used under that name.
deletions = Table(
    "deletions",
    METADATA,
    Column("study", Text, primary_key=True),
    Column("owner", Text),
    Column("deleted_by", Text, nullable=False),
    Column("deleted_at", Instant, nullable=False),
    Column("purge_at", Instant, nullable=False),
    Column("purging_at", Instant),
    Column("purged_at", Instant),
    Column("next_attempt", sa.Integer, nullable=False),
)

# What an owner's purged studies have used, by the day on which their trials were added: deleting gives nothing back.
purged_use = Table(
    "purged_use",
    METADATA,
    Column("owner", Text, primary_key=True),
    Column("day", Instant, primary_key=True),
    Column("gpu_seconds", sa.Double, nullable=False),
)

team_members = Table(
    "team_members",
    METADATA,
    Column("team", Text, primary_key=True),
    Column("member", Text, primary_key=True, index=True),
)

shares = Table(
    "shares",
    METADATA,
    Column("study", Text, primary_key=True),
    Column("team", Text, primary_key=True, index=True),
)

queue = Table(
    "queue",
    METADATA,
    Column("id", _NUMBER, primary_key=True),
    Column("study", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("config_hash", Text, nullable=False),
    # As submitted; `config_hash` changes with an extension.
    Column("first_hash", Text, nullable=False),
    Column("key", Text),  # idempotency key; NULL, of which there may be many, without one
    Column("worker", Text),
    Column("lease_until", Instant),
    Column("job", Text),
    Column("attempt", sa.Integer, nullable=False),
    Column("first_attempt", sa.Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("priority", sa.Integer, nullable=False, server_default="0"),
    Column("queued_at", Instant),  # when it was queued again; NULL: never
    Column("set_aside_at", Instant),
    Column("position", sa.Integer),
    Column("expected_at", Instant),
    Column("width", sa.Integer),
    Column("started_at", Instant),
    Column("yields", Text),
    Column("document", _STUDY, nullable=False),
    Column("source", _STUDY),
    UniqueConstraint("owner", "key"),
    _one_of("state", QUEUE_STATES),
    Index(None, "state", "id"),
    Index(None, "owner", "id"),
)
