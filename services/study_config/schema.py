"""The study file: its keys as pydantic models, and their JSON Schema for editors."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nas_blockout.data.corruptions import SEVERITIES
from nas_blockout.data.data_settings import MOST_FOLDS
from nas_blockout.data.placement import MEMORY_SHARE, ImageCache
from services.study_config.search_options import Metric, Searching, Wanted
from services.study_config.settings_models import SchemaOf, with_plugins

DEFAULT_MARGIN = 0.005
MOST = 2**63 - 1  # the largest integer that SQLite and PostgreSQL can store
RankPlacement = Literal["one-node", "several-nodes"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Seed = Annotated[int, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(gt=0, le=MOST)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Match(_Strict):
    """Match the cost of another arm: the widths are scaled to it."""

    arm: Name = Field(description="The arm whose cost is matched.")
    quantity: Literal["macs"] = Field("macs", description="Cost that is matched.")


class ArmConfig(Searching):
    """One arm of a study."""

    extends: Name | None = Field(None, description="Another arm whose settings are used where this arm has none.")
    description: str = Field("", description="Short description of the arm.")
    method: Annotated[dict[str, Any], SchemaOf("method", partial=True)] | None = Field(
        None,
        description="Name and settings of a method; without a name, changes to the method of the arm in `extends`.",
    )
    backbone: Annotated[dict[str, Any], SchemaOf("backbone", partial=True)] | None = Field(
        None, description="Settings of the backbone that differ from the study's."
    )
    training: Annotated[dict[str, Any], SchemaOf("training")] | None = Field(
        None, description="Settings of the training that differ from the study's."
    )
    distillation: Annotated[dict[str, Any], SchemaOf("distillation")] | None = Field(
        None, description="How a learned structure becomes branches."
    )
    pruning: Annotated[dict[str, Any], SchemaOf("pruning")] | None = Field(
        None, description="How the trained dense network becomes a narrower one."
    )
    confusion: Annotated[dict[str, Any], SchemaOf("confusion")] | None = Field(
        None, description="How the dense network's confusions become branches."
    )
    space: list[str] | None = Field(
        None, description="Search spaces, applied in order; without any, the arm is repeated as it is."
    )
    match: Match | None = Field(None, description="Match the cost of another arm.")


class Budget(_Strict):
    """Budget of each arm; the search ends at the first limit that is reached."""

    sample_passes: Count | None = Field(None, description="Training images times epochs, over search and retraining.")
    seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Measured seconds of training, search algorithm and derivation.",
    )
    trainings: Count | None = Field(None, description="Search trials and retrainings, including failed ones.")
    tolerance: float = Field(
        0.02, ge=0, le=1, description="Largest relative difference in spending at which arms are still ranked."
    )

    @field_validator("seconds", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _limited(self) -> "Budget":
        if self.sample_passes is None and self.seconds is None and self.trainings is None:
            raise ValueError(
                "a budget has sample_passes, seconds or trainings, or several of them; the first limit ends the search"
            )
        return self


class Retrain(_Strict):
    """Retraining of the selected trials."""

    seeds: list[Seed] = Field(
        [0, 1, 2, 3, 4],
        min_length=1,
        description="Seeds; the same for every arm. With `folds` of the data each of them holds out another fold, and "
        "if left out there is one for each.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds


class Workers(_Strict):
    """Resources of trials."""

    max_concurrent_trials: int = Field(
        2, ge=1, le=4096, description="Maximum number of trials that run at the same time."
    )
    cpus: int = Field(1, ge=1, le=256, description="Threads and Ray CPUs per trial, or of each of its ranks.")
    gpus: float = Field(
        0.0,
        ge=0,
        le=64,
        description="Ray GPUs per trial; trials with fractions share a GPU, and a trial with several has one for each "
        "of its ranks.",
    )
    ranks: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Processes that train one trial together, with the numbers of one; as many as GPUs, or 1, if left "
        "out.",
    )
    rank_placement: RankPlacement = Field(
        "one-node", description="Whether the ranks of a trial are on one node, or on as few as possible."
    )
    retries: int = Field(2, ge=0, le=20, description="Retries after the process of a trial has died.")
    data_memory_share: float = Field(
        MEMORY_SHARE,
        ge=0,
        le=1,
        description="Part of a GPU's free memory that the images of a split may take; those of a larger one are copied "
        "batch by batch.",
    )
    image_cache: ImageCache = Field(
        "none",
        description="With `disk`, image files that do not fit into memory are decoded once, into `cache/` of the data "
        "root, for all trials of a machine; with `none`, in every epoch.",
    )

    @field_validator("gpus", "data_memory_share", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def ranks_of_trial(self) -> int:
        """Processes that train one trial together."""
        return self.ranks or max(1, int(self.gpus))

    @model_validator(mode="after")
    def _one_gpu_a_rank(self) -> "Workers":
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus above 1 must be a whole number, one for each rank of a trial, got {self.gpus:g}")
        if self.ranks is not None and self.gpus and self.ranks != max(1, int(self.gpus)):
            raise ValueError(
                f"ranks must be as many as gpus, one for each, got ranks: {self.ranks} and gpus: {self.gpus:g}; "
                "leave ranks out"
            )
        return self


class Robustness(_Strict):
    """Corrupted test images for retrained models, besides the clean ones."""

    images: int = Field(
        1000, ge=1, le=100_000, description="Number of test images, balanced over the classes; all if there are fewer."
    )
    severities: list[int] = Field(
        list(SEVERITIES), min_length=1, description="Severities at which each of the 15 kinds of corruption is tested."
    )

    @field_validator("severities")
    @classmethod
    def _known(cls, severities: list[int]) -> list[int]:
        if severities != sorted(set(severities)) or not set(severities) <= set(SEVERITIES):
            raise ValueError("must be some of 1, 2, 3, 4, 5 in ascending order")
        return severities


class StudyConfig(Wanted):
    """A study: its question, its arms, their data and their budget."""

    schema_version: Literal[2] = Field(description="Version of this format.")
    name: Name = Field(description="Name of the study and its folder.")
    question: str = Field("", description="Question that the study answers, in one sentence.")
    seed: Seed = Field(0, description="Seed of the search.")
    data: Annotated[dict[str, Any], SchemaOf("data")] = Field(
        default_factory=lambda: {"name": "digits"}, description="Settings of the data."
    )
    backbone: Annotated[dict[str, Any], SchemaOf("backbone")] = Field(
        default_factory=lambda: {"name": "convnet"}, description="Settings of the backbone."
    )
    training: Annotated[dict[str, Any], SchemaOf("training")] = Field(
        default_factory=dict, description="Settings of the training."
    )
    budget: Budget = Field(description="Budget of each arm.")
    retrain: Retrain = Field(default_factory=Retrain, description="Retraining of the selected trials.")
    metric: Metric = Field(
        "accuracy",
        description="What search, selection and verdict go by: the share of images that are right, or the mean of this "
        "share over the classes, in which rare classes count as much as common ones.",
    )
    equivalence_margin: float = Field(
        DEFAULT_MARGIN,
        gt=0,
        lt=1,
        description="Largest difference in test accuracy, as a share of 1, at which a smaller model counts as equally "
        "good and may be recommended; 0.005 is half a point.",
    )
    robustness: Robustness | None = Field(
        None, description="Corrupted test images for retrained models, besides the clean ones; none if left out."
    )
    workers: Workers = Field(default_factory=Workers, description="Resources of trials.")
    export: list[Name] | None = Field(
        None, description="Arms whose best model is exported at the end, beside the recommended one; all if left out."
    )
    calibrate: bool = Field(
        False,
        description="Whether one temperature is fitted for each retrained model, on validation images, by which its "
        "logits are divided for probabilities.",
    )
    arms: dict[Name, ArmConfig] = Field(min_length=1, description="The arms by name.")

    @model_validator(mode="before")
    @classmethod
    def _one_seed_a_fold(cls, document: Any) -> Any:
        """Give a study that has folds and says nothing of seeds one seed for each fold."""
        data, retrain = (document.get(key) for key in ("data", "retrain")) if isinstance(document, dict) else ("", "")
        folds = data.get("folds") if isinstance(data, dict) else None
        if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= MOST_FOLDS:
            return document  # no folds, or such as the rules of the data refuse
        if retrain is None and "retrain" not in document:
            retrain = {}
        if not isinstance(retrain, dict) or "seeds" in retrain:
            return document
        return {**document, "retrain": {**retrain, "seeds": list(range(folds))}}


def json_schema(plugins: Iterable[tuple[str, str]] = (), **options: Any) -> dict[str, Any]:
    """Return the JSON Schema of a study file, for editors: every key and setting with its range and description.

    Args:
        plugins: Section and name of every plug-in that is in it, beside what is built in; these can be used.
        options: Of pydantic's ``model_json_schema``.
    """
    with with_plugins(plugins):
        return StudyConfig.model_json_schema(**options)
