"""Search options of an arm: search algorithm, early stopping, constraints, objectives and selection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_blockout.serialization import count_of
from nas_blockout.settings_fields import Conflict, refuse

GRID_POINTS = 3
STARTUP_TRIALS = 4
Searcher = Literal["random", "tpe", "gp", "grid"]
Objective = Literal["accuracy", "parameters", "macs", "latency_ms"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Pruner(_Strict):
    """How trials are stopped early.

    ASHA: a trial that reaches a rung goes on if it is among the best ``1 / reduction_factor`` of the trials of its arm
    that have reached it until then, and is stopped otherwise. The first to reach a rung goes on.

    References:
        Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
        Hyperparameter Tuning. MLSys 2020. Differs from the paper in: trials are stopped, never paused and promoted.
    """

    name: Literal["asha"] = Field(description="Early stopping: asynchronous successive halving.")
    rungs: list[int] | None = Field(
        None,
        description="Epochs after which trials are compared; by default the epochs divided by powers of the factor.",
    )
    reduction_factor: int = Field(3, ge=2, le=64, description="At each rung one trial in this many continues.")

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: list[int] | None) -> list[int] | None:
        if rungs is not None and (not rungs or rungs != sorted(set(rungs)) or rungs[0] < 1):
            raise ValueError("rungs must be one epoch or more, each later than the one before, from 1 on")
        return rungs

    def resolved(self, epochs: int) -> "Pruner":
        """Return the pruner with its rungs, for trials with this number of epochs.

        Raises:
            ValueError: A rung is not before the end of a trial, or a trial is too short for any.
        """
        if self.rungs is not None:
            if self.rungs[-1] >= epochs:
                message = f"pruner.rungs: must end before the last of {count_of(epochs, 'epoch')}, got {self.rungs}"
                raise Conflict(message, "pruner.rungs", "training.epochs")
            return self
        rungs = []
        while (epochs := epochs // self.reduction_factor) > 0:
            rungs.append(epochs)
        if not rungs:
            message = (
                f"pruner: trials need at least {self.reduction_factor} epochs (the reduction_factor) to be stopped "
                "early; train longer or leave the pruner out"
            )
            raise Conflict(message, "pruner", "training.epochs")
        return self.model_copy(update={"rungs": rungs[::-1]})


class Constraints(_Strict):
    """Limits on the network of a trial; a cost that is known before the training is checked before it."""

    parameters: int | None = Field(None, gt=0, description="Maximum number of trainable parameters.")
    macs: int | None = Field(None, gt=0, description="Maximum multiply-accumulates per image.")
    latency_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Maximum latency of one image in milliseconds, measured on one thread of this machine; of one "
        "that the trial learns, on the trial's device.",
    )

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by quantity."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    def exceeded(self, costs: Mapping[str, float | None]) -> dict[str, tuple[float, float]]:
        """Return the costs that exceed their limits, with the limits, by quantity; an unknown cost exceeds none."""
        return {name: (value, limit) for name, limit in self.limits.items() if (value := costs.get(name) or 0) > limit}


class Selection(_Strict):
    """Which trial is retrained: the one with the lowest objective among those whose accuracy is close to the best."""

    objective: Literal["parameters", "macs", "latency_ms"] = Field(description="Objective to minimize.")
    tolerance: float = Field(0.01, ge=0, le=1, description="Largest difference to the best validation accuracy.")


@dataclass(frozen=True, slots=True)
class Rules:
    """How an arm searches, resolved.

    Args:
        grid_points: Values per numeric parameter of the grid.
        n_startup_trials: Random trials before TPE or the Gaussian process is used.
        pruner: Early stopping, with its rungs; None for none.
        constraints: Limits on the network of a trial.
        objectives: What is optimized: accuracy is maximized, all others are minimized.
        selection: Which trial is retrained; None for the most accurate one.
    """

    grid_points: int = GRID_POINTS
    n_startup_trials: int = STARTUP_TRIALS
    pruner: Pruner | None = None
    constraints: Constraints = field(default_factory=Constraints)
    objectives: tuple[Objective, ...] = ("accuracy",)
    selection: Selection | None = None

    def __post_init__(self) -> None:
        refuse(_unselectable(self.pruner, self.objectives, self.selection))

    @property
    def needs_latency(self) -> bool:
        """Whether the latency of the final network of a trial must be measured."""
        return "latency_ms" in self.objectives or self.constraints.latency_ms is not None

    def to_json(self) -> dict[str, Any]:
        """Return the rules that differ from the defaults as plain JSON types."""
        values = {
            "grid_points": self.grid_points if self.grid_points != GRID_POINTS else None,
            "n_startup_trials": self.n_startup_trials if self.n_startup_trials != STARTUP_TRIALS else None,
            "pruner": self.pruner.model_dump() if self.pruner else None,
            "constraints": self.constraints.limits or None,
            "objectives": list(self.objectives) if self.objectives != ("accuracy",) else None,
            "selection": self.selection.model_dump() if self.selection else None,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read rules back from the result of `to_json`; other keys are ignored."""
        return cls(
            grid_points=document.get("grid_points", GRID_POINTS),
            n_startup_trials=document.get("n_startup_trials", STARTUP_TRIALS),
            pruner=Pruner.model_validate(document["pruner"]) if "pruner" in document else None,
            constraints=Constraints.model_validate(document.get("constraints", {})),
            objectives=tuple(document.get("objectives", ("accuracy",))),
            selection=Selection.model_validate(document["selection"]) if "selection" in document else None,
        )


class Wanted(_Strict):
    """Constraints, objectives and selection of a study; an arm may override them."""

    constraints: Constraints | None = Field(None, description="Limits on the network of a trial.")
    objectives: list[Objective] | None = Field(
        None, description="What is optimized: accuracy, and optionally costs to minimize; accuracy alone if left out."
    )
    selection: Selection | None = Field(
        None, description="Which trial is retrained if there are several objectives; the most accurate one if left out."
    )

    @field_validator("objectives")
    @classmethod
    def _with_accuracy(cls, objectives: list[Objective] | None) -> list[Objective] | None:
        if objectives is not None and ("accuracy" not in objectives or len(set(objectives)) != len(objectives)):
            raise ValueError("objectives must be distinct, and accuracy one of them")
        return objectives


class Searching(Wanted):
    """How an arm searches."""

    searcher: Searcher | None = Field(
        None, description="Search algorithm: random search, TPE, a Gaussian process or a grid; random if left out."
    )
    grid_points: int | None = Field(
        None,
        ge=1,
        le=100,
        description=f"Values per numeric parameter, for searcher grid; {GRID_POINTS} if left out.",
    )
    n_startup_trials: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=f"Random trials before the model is used, for searcher tpe or gp; {STARTUP_TRIALS} if left out.",
    )
    pruner: Pruner | None = Field(None, description="Early stopping of trials; none if left out.")


@dataclass(frozen=True, slots=True)
class Options:
    """The search options of an arm, with those of the arm that it extends and of the study where it has none.

    Args:
        searcher: Search algorithm.
        grid_points: Values per numeric parameter; None for the default.
        n_startup_trials: Random trials; None for the default.
        pruner: Early stopping, as the study file has it.
        constraints: Limits on the network of a trial.
        objectives: What is optimized.
        selection: Which trial is retrained.
    """

    searcher: Searcher
    grid_points: int | None
    n_startup_trials: int | None
    pruner: Pruner | None
    constraints: Constraints
    objectives: tuple[Objective, ...]
    selection: Selection | None

    @classmethod
    def of(cls, arm: Searching, base: Searching, study: Wanted) -> Self:
        """Return the options of an arm.

        Args:
            arm: Options of the arm.
            base: Options of the arm that it extends.
            study: Options of the study.
        """
        return cls(
            searcher=arm.searcher or base.searcher or "random",
            grid_points=arm.grid_points or base.grid_points,
            n_startup_trials=arm.n_startup_trials or base.n_startup_trials,
            pruner=arm.pruner or base.pruner,
            constraints=arm.constraints or base.constraints or study.constraints or Constraints(),
            objectives=tuple(arm.objectives or base.objectives or study.objectives or ["accuracy"]),
            selection=arm.selection or base.selection or study.selection,
        )

    @property
    def points(self) -> int:
        """Values per numeric parameter of a grid."""
        return self.grid_points or GRID_POINTS

    def conflicts(self, *, epochs: int) -> Iterator[Conflict]:
        """Yield every contradiction between the options.

        Args:
            epochs: Epochs of a trial.
        """
        if self.grid_points is not None and self.searcher != "grid":
            message = f"grid_points: belongs to searcher grid, this arm has searcher {self.searcher}"
            yield Conflict(message, "grid_points", "searcher")
        if self.n_startup_trials is not None and self.searcher not in ("tpe", "gp"):
            message = f"n_startup_trials: belongs to searcher tpe or gp, this arm has searcher {self.searcher}"
            yield Conflict(message, "n_startup_trials", "searcher")
        if self.pruner is not None:
            try:
                self.pruner.resolved(epochs)
            except Conflict as conflict:
                yield conflict
        yield from _unselectable(self.pruner, self.objectives, self.selection)

    def rules(self, *, epochs: int) -> Rules:
        """Return the rules by which the arm searches.

        Args:
            epochs: Epochs of a trial.

        Raises:
            Conflict: The options contradict each other.
        """
        refuse(self.conflicts(epochs=epochs))
        return Rules(
            grid_points=self.points,
            n_startup_trials=self.n_startup_trials or STARTUP_TRIALS,
            pruner=self.pruner.resolved(epochs) if self.pruner else None,
            constraints=self.constraints,
            objectives=self.objectives,
            selection=self.selection,
        )


def _unselectable(
    pruner: Pruner | None, objectives: Sequence[Objective], selection: Selection | None
) -> Iterator[Conflict]:
    if pruner is not None and len(objectives) > 1:
        message = "pruner: trials with several objectives cannot be stopped early: leave one of the two out"
        yield Conflict(message, "pruner", "objectives")
    if selection is not None and selection.objective not in objectives:
        message = f"selection.objective: must be one of the objectives {list(objectives)}, got {selection.objective!r}"
        yield Conflict(message, "selection.objective", "objectives")
