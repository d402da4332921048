"""What the API answers with: one model a shape, from which its description in OpenAPI is made."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.store import QueueSummary

State = Literal["queued", "running", "cancelling", "complete", "failed", "cancelled"]
_MOMENT = "2026-11-21T12:00:00Z"
_STUDY = {
    "name": "quickstart",
    "state": "running",
    "owner": "ann",
    "hash": "0f3c9a7be1d24c55",
    "message": "",
    "job": "nas-blockout-quickstart-0f3c9a7be1d2-0",
    "attempt": 0,
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
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


_PROBLEM = {
    "code": "invalid_study",
    "message": "arms.blockout.method.clusters: must lie in 1..64, got 0",
    "key": "arms.blockout.method.clusters",
    "value": "0",
    "remedy": None,
}
_FILE = {"name": "model.onnx", "sha256": "9f86d081", "url": "/v1/studies/quickstart/models/blockout/model.onnx"}


def _example(document: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [document]})


class Problem(BaseModel):
    """What is wrong with a request, and what to do."""

    model_config = _example(_PROBLEM)

    code: str = Field(description="Kind of the problem, for programs: it stays the same when words change.")
    message: str = Field(description="The rule, the value that breaks it, and what to do, for people.")
    key: str | None = Field(None, description="Key, parameter or header that is meant, if it is one.")
    value: str | None = Field(None, description="The value found, as text and shortened, if there is one.")
    remedy: str | None = Field(None, description="What to do, if that is known.")


class ErrorDocument(BaseModel):
    """The one shape of every error."""

    model_config = _example({"error": _PROBLEM})

    error: Problem


class StudyView(BaseModel):
    """A study that was given to the service."""

    model_config = _example(_STUDY)

    name: str
    state: State = Field(description="`cancelling` until its worker has stopped it.")
    owner: str
    hash: str = Field(description="Name of everything in the study that decides its results.")
    message: str = Field(description="One sentence on how it ended, perhaps empty.")
    job: str | None = Field(description="Its last Ray job, or null.")
    attempt: int = Field(description="Number of that job among all of the study, from 0.")
    created_at: datetime
    updated_at: datetime


class ArmView(BaseModel):
    """Where a contestant stands."""

    model_config = _example(_ARM)

    name: str
    done: int = Field(description="Trials that ended well.")
    running: int
    queued: int
    failed: int
    pruned: int = Field(description="Trials that were stopped early.")
    sample_passes: int = Field(description="Images trained on so far, times epochs.")
    seconds: float = Field(description="Measured seconds of training so far.")
    best: float | None = Field(description="Best validation accuracy so far, 0 to 1, or null.")
    share: float = Field(description="Share of its budget that is spent, 0 to 1.")


class ProgressView(BaseModel):
    """Where a study stands."""

    model_config = _example({"state": "running", "message": "", "share": 0.18, "arms": [_ARM]})

    state: State
    message: str
    share: float = Field(description="Share of all budgets that is spent, 0 to 1.")
    arms: list[ArmView]


class StudyDetail(StudyView):
    """A study, where it stands, and what it asks."""

    model_config = _example({**_STUDY, "question": "Is learned better?", "share": 0.18, "arms": [_ARM], "study": {}})

    question: str
    share: float
    arms: list[ArmView]
    study: dict[str, Any] = Field(description="The resolved study: every setting with its value.")


class StudyPage(BaseModel):
    """Studies, the newest first."""

    model_config = _example({"studies": [_STUDY], "next": None})

    studies: list[StudyView]
    next: str | None = Field(description="`cursor` of the next page, or null at the end.")


class ArchitectureView(BaseModel):
    """The network of a retrained model, as an architecture."""

    model_config = _example(
        {"arm": "blockout", "trial": 12, "seed": 0, "hash": "5b1f", "architecture": {"schema_version": 1, "layers": []}}
    )

    arm: str
    trial: int
    seed: int
    hash: str | None
    architecture: dict[str, Any] = Field(description="See the reference of architecture JSON.")


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
    verified: bool = Field(description="Whether every form was shown to compute what the trained network does.")
    created_at: datetime
    files: list[FileView]


class Changes(BaseModel):
    """What is changed in a study to extend it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"assignments": ["budget.sample_passes=60000", "retrain.seeds=[0, 1, 2, 3]"]}]},
    )

    assignments: list[str] = Field(min_length=1, max_length=100, description="`key=value`, as `run --set` takes them.")


class Alive(BaseModel):
    """The process answers."""

    model_config = _example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What the service needs, and whether each of it answers."""

    model_config = _example({"ready": True, "services": {"database": "ok", "ray": "ok", "mlflow": "off"}})

    ready: bool
    services: dict[str, str] = Field(description="`ok`, `off` where none is configured, or what is wrong.")


def study_view(row: QueueSummary) -> StudyView:
    """Return a study of the queue as the API shows it."""
    return StudyView(**study_fields(row))


def study_fields(row: QueueSummary) -> dict[str, Any]:
    """Return what every view of a study has."""
    return {
        "name": row.study,
        "state": row.state,
        "owner": row.owner,
        "hash": row.config_hash,
        "message": row.message,
        "job": row.job,
        "attempt": row.attempt,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }
