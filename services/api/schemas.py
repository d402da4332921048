"""Models of requests and responses, from which the OpenAPI description is generated."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.store import QueueSummary

State = Literal["queued", "running", "cancelling", "complete", "failed", "cancelled"]
ShownState = Literal[State, "interrupted"]
Origin = Literal["service", "command-line"]
MOST_PRIORITY = 100
Priority = Annotated[
    int,
    Field(
        ge=-MOST_PRIORITY,
        le=MOST_PRIORITY,
        description="Of your waiting studies, those with a higher one are first; it gives nothing over other owners.",
    ),
]
_MOMENT = "2026-11-21T12:00:00Z"
_STUDY = {
    "name": "quickstart",
    "state": "running",
    "owner": "ann",
    "origin": "service",
    "hash": "0f3c9a7be1d24c55",
    "message": "",
    "job": "nas-blockout-quickstart-0f3c9a7be1d2-0",
    "attempt": 0,
    "priority": 0,
    "position": None,
    "expected_at": None,
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
    "delete_at": None,
}
_ARM = {
    "name": "blockout",
    "done": 1,
    "running": 1,
    "queued": 0,
    "failed": 0,
    "pruned": 0,
    "sample_passes": 9600,
    "seconds": 12.5,
    "best": 0.93,
    "share": 0.18,
}


_BROKEN_RULE = {
    "message": "arms.blockout.method.clusters: must be greater than or equal to 1, got 0",
    "key": "arms.blockout.method.clusters",
    "value": "0",
    "remedy": None,
    "line": 8,
}
_PROBLEM = {"code": "invalid_study", **_BROKEN_RULE, "errors": [_BROKEN_RULE], "unchecked": None}
_AUDIT = {
    "id": 7,
    "at": _MOMENT,
    "actor": "ann",
    "token": 3,
    "action": "delete",
    "subject": "quickstart",
    "detail": {},
}
_WAITING = {
    "name": "quickstart",
    "owner": "ann",
    "priority": 0,
    "waiting_since": _MOMENT,
    "position": 3,
    "ahead": 2,
    "own_ahead": 0,
    "expected_at": None,
    "message": "waits for a place",
}
_FILE = {"name": "model.onnx", "sha256": "9f86d081", "url": "/v1/studies/quickstart/models/blockout/model.onnx"}


def _example(document: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [document]})


class BrokenRule(BaseModel):
    """One rule that a study breaks."""

    model_config = _example(_BROKEN_RULE)

    message: str = Field(description="The rule, the value that breaks it, and what to do, for people.")
    key: str | None = Field(None, description="Key of the study file.")
    value: str | None = Field(None, description="The value found, as text and shortened, if there is one.")
    remedy: str | None = Field(None, description="What to do, if that is known.")
    line: int | None = Field(None, description="Line of a study sent as YAML, from 1.")


class Problem(BaseModel):
    """What is wrong with a request, and what to do."""

    model_config = _example(_PROBLEM)

    code: str = Field(description="Stable identifier of the problem, for programs.")
    message: str = Field(description="The rule, the value that breaks it, and what to do.")
    key: str | None = Field(None, description="Key, parameter or header concerned, or null.")
    value: str | None = Field(None, description="The offending value as text, shortened, or null.")
    remedy: str | None = Field(None, description="What to do, or null.")
    line: int | None = Field(None, description="Line of a study sent as YAML, from 1, or null.")
    errors: list[BrokenRule] = Field([], description="All rules that a study breaks, the first one included.")
    unchecked: str | None = Field(
        None, description="What of a study could not be checked before these errors are fixed, or null."
    )


class ErrorDocument(BaseModel):
    """The form of all errors."""

    model_config = _example({"error": _PROBLEM})

    error: Problem


class StudyView(BaseModel):
    """A study: submitted, or run on the command line."""

    model_config = _example(_STUDY)

    name: str
    state: ShownState = Field(
        description="`cancelling` until the worker has stopped it; `interrupted` if it was run on the command line and "
        "its driver is gone."
    )
    owner: str = Field(description="Who submitted it; empty if it was run on the command line.")
    origin: Origin = Field("service", description="Whether it was submitted to the service or run on the command line.")
    hash: str = Field(description="Hash of all settings that affect results.")
    message: str = Field(description="One sentence on its status; may be empty.")
    job: str | None = Field(description="ID of its last Ray job, or null.")
    attempt: int = Field(description="Number of that job among all jobs of the study, from 0.")
    priority: int = Field(description="Of the owner's waiting studies, those with a higher one are first.")
    position: int | None = Field(
        description="Its place among all waiting studies, from 1; null if it does not wait, or is set aside."
    )
    expected_at: datetime | None = Field(description="When it is expected to start, or null if that is not known.")
    created_at: datetime
    updated_at: datetime
    delete_at: datetime | None = Field(None, description="When it is deleted because it is kept no longer, or null.")


class ArmView(BaseModel):
    """The progress of an arm."""

    model_config = _example(_ARM)

    name: str
    done: int = Field(description="Trials that succeeded.")
    running: int
    queued: int
    failed: int
    pruned: int = Field(description="Trials that were stopped early.")
    sample_passes: int = Field(description="Training images processed so far, counted in every epoch.")
    seconds: float = Field(description="Seconds spent so far on training and search.")
    best: float | None = Field(description="Best validation accuracy so far, in [0, 1], or null.")
    share: float = Field(description="Fraction of the arm's budget used, in [0, 1].")


class ProgressView(BaseModel):
    """The progress of a study."""

    model_config = _example(
        {"state": "running", "message": "", "position": None, "expected_at": None, "share": 0.18, "arms": [_ARM]}
    )

    state: ShownState
    message: str
    position: int | None = Field(None, description="As of a study.")
    expected_at: datetime | None = Field(None, description="As of a study.")
    share: float = Field(description="Fraction of all budgets used, in [0, 1].")
    arms: list[ArmView]


class StudyDetail(StudyView):
    """A study with its progress and settings."""

    model_config = _example({**_STUDY, "question": "Is learned better?", "share": 0.18, "arms": [_ARM], "study": {}})

    question: str
    share: float
    arms: list[ArmView]
    study: dict[str, Any] = Field(description="The resolved study, with all defaults filled in.")


class StudyPage(BaseModel):
    """A page of studies, newest first."""

    model_config = _example({"studies": [_STUDY], "next": None})

    studies: list[StudyView]
    next: str | None = Field(description="`cursor` of the next page, or null on the last page.")


class WaitingView(BaseModel):
    """A study that waits, and what is ahead of it."""

    model_config = _example(_WAITING)

    name: str
    owner: str
    priority: int = Field(description="As of a study.")
    waiting_since: datetime
    position: int | None = Field(description="As of a study.")
    ahead: int | None = Field(description="Number of studies ahead of it, of all owners; null if that is not known.")
    own_ahead: int | None = Field(description="How many of these belong to its owner.")
    expected_at: datetime | None = Field(description="As of a study.")
    message: str = Field(description="Why it waits.")


class QueueView(BaseModel):
    """The queue, as far as the caller may see it: numbers of all owners, and the waiting studies of one's own."""

    model_config = _example({"running": 2, "waiting": 5, "studies": [_WAITING]})

    running: int = Field(description="Number of studies that run, of all owners.")
    waiting: int = Field(description="Number of studies that wait, of all owners.")
    studies: list[WaitingView] = Field(description="One's own that wait, in line; an administrator's are those of all.")


class DeletedView(BaseModel):
    """A deleted study that can still be restored."""

    model_config = _example(
        {"name": "quickstart", "owner": "ann", "deleted_by": "ann", "deleted_at": _MOMENT, "purge_at": _MOMENT}
    )

    name: str
    owner: str | None = Field(description="Who submitted it, or null for one that was run without the service.")
    deleted_by: str
    deleted_at: datetime
    purge_at: datetime = Field(description="When it is purged, and can be restored no more.")


class SharesView(BaseModel):
    """The teams that a study is shared with."""

    model_config = _example({"study": "quickstart", "teams": ["vision"]})

    study: str
    teams: list[str]


class AuditView(BaseModel):
    """A row of the audit log."""

    model_config = _example(_AUDIT)

    id: int
    at: datetime
    actor: str = Field(description="The owner or operator who did it; `worker` and `retention` are the service itself.")
    token: int | None = Field(description="ID of the token, 0 for the secret of the service; null without one.")
    action: str
    subject: str = Field(description="The study, token or team concerned; may be empty.")
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """A page of the audit log, newest first."""

    model_config = _example({"rows": [_AUDIT], "next": None})

    rows: list[AuditView]
    next: int | None = Field(description="`before` of the next page, or null on the last page.")


class ArchitectureView(BaseModel):
    """The architecture of a retrained model."""

    model_config = _example(
        {"arm": "blockout", "trial": 12, "seed": 0, "hash": "5b1f", "architecture": {"schema_version": 1, "layers": []}}
    )

    arm: str
    trial: int
    seed: int
    hash: str | None
    architecture: dict[str, Any] = Field(description="See the reference page on architecture JSON.")


class FileView(BaseModel):
    """A file of an exported model."""

    model_config = _example(_FILE)

    name: str
    sha256: str
    url: str


class ModelView(BaseModel):
    """The exported model of an arm."""

    model_config = _example({"arm": "blockout", "verified": True, "created_at": _MOMENT, "files": [_FILE]})

    arm: str
    verified: bool = Field(description="Whether all formats reproduce the outputs of the trained network.")
    created_at: datetime
    files: list[FileView]


class Changes(BaseModel):
    """Changes that extend a study."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"assignments": ["budget.sample_passes=60000", "retrain.seeds=[0, 1, 2, 3]"]}]},
    )

    assignments: list[str] = Field(min_length=1, max_length=100, description="`key=value`, as for `run --set`.")


class Alive(BaseModel):
    """The process responds."""

    model_config = _example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Status of the dependencies of the service."""

    model_config = _example({"ready": True, "services": {"database": "ok", "ray": "ok", "mlflow": "off"}})

    ready: bool
    services: dict[str, str] = Field(description="`ok`, `off` if not configured, or what is wrong.")


def study_view(row: QueueSummary, *, retention_days: int | None) -> StudyView:
    """Return the API's view of a submitted study."""
    return StudyView(**study_fields(row, retention_days=retention_days))


def study_fields(row: QueueSummary, *, retention_days: int | None) -> dict[str, Any]:
    """Return the fields that all views of a study share.

    Args:
        row: The study in the queue.
        retention_days: Days after which a study that has ended is deleted, or None.
    """
    kept = row.ended and row.submitted and retention_days is not None
    return {
        "name": row.study,
        "state": row.state,
        "owner": row.owner,
        "origin": "service" if row.submitted else "command-line",
        "hash": row.config_hash,
        "message": row.message,
        "job": row.job,
        "attempt": row.attempt,
        "priority": row.priority,
        "position": row.position,
        "expected_at": row.expected_at,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "delete_at": row.updated_at + timedelta(days=retention_days or 0) if kept else None,
    }
