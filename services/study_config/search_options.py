"""Search options of an arm: search algorithm, early stopping, constraints, objectives and selection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_blockout.serialization import to_json
from nas_blockout.settings_fields import Conflict, refuse
from services.search_plugins import ONE_OBJECTIVE, SEARCHER_CHOICES, SEARCHERS, algorithm_named
from services.study_config.searching.pruners import AnyPruner, PrunerChoice, pruner_from_json
from services.study_config.searching.searchers import (
    GRID_POINTS,
    STARTUP_TRIALS,
    PluginSearcher,
    Searcher,
    SearcherChoice,
    SearcherOptions,
    SearcherSettings,
    searcher_settings,
)
from services.study_config.searching.warm_starts import Beginning, WarmStart

Metric = Literal["accuracy", "balanced_accuracy"]
Point = Mapping[str, bool | int | float | str]
Objective = Literal["accuracy", "parameters", "macs", "latency_ms"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
        n_startup_trials: Random trials before the model of TPE, the Gaussian process or CMA-ES is used.
        settings: Other settings of the search algorithm.
        pruner: Early stopping, resolved; None for none.
        constraints: Limits on the network of a trial.
        objectives: What is optimized: accuracy is maximized, all others are minimized.
        selection: Which trial is retrained; None for the most accurate one.
        enqueue: Points that are tried first, in this order.
        plugin_settings: Settings of the search algorithm of a plug-in; None for one that is built in.
        beginning: Trials of an earlier study whose points are tried after those of `enqueue`; None for none.
    """

    grid_points: int = GRID_POINTS
    n_startup_trials: int = STARTUP_TRIALS
    settings: SearcherSettings = field(default_factory=SearcherSettings)
    pruner: AnyPruner | None = None
    constraints: Constraints = field(default_factory=Constraints)
    objectives: tuple[Objective, ...] = ("accuracy",)
    selection: Selection | None = None
    enqueue: tuple[Point, ...] = ()
    plugin_settings: Any = None
    beginning: Beginning | None = None

    def __post_init__(self) -> None:
        refuse(_unselectable(self.pruner, self.objectives, self.selection))

    @property
    def needs_latency(self) -> bool:
        """Whether the latency of the final network of a trial must be measured."""
        return "latency_ms" in self.objectives or self.constraints.latency_ms is not None

    def to_json(self) -> dict[str, Any]:
        """Return the rules that differ from the defaults as plain JSON types."""
        plugin = None if self.plugin_settings is None else to_json(self.plugin_settings)
        values = {
            "grid_points": self.grid_points if self.grid_points != GRID_POINTS else None,
            "n_startup_trials": self.n_startup_trials if self.n_startup_trials != STARTUP_TRIALS else None,
            "searcher_settings": plugin or self.settings.given or None,
            "pruner": self.pruner.to_json() if self.pruner else None,
            "constraints": self.constraints.limits or None,
            "objectives": list(self.objectives) if self.objectives != ("accuracy",) else None,
            "selection": self.selection.model_dump() if self.selection else None,
            "enqueue": [dict(point) for point in self.enqueue] or None,
            "warm_start": self.beginning.to_json() if self.beginning else None,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read rules back from the result of `to_json`, in which ``searcher`` names the search algorithm."""
        searcher, settings = document.get("searcher", "random"), document.get("searcher_settings", {})
        plugin = searcher_settings(searcher, settings)
        return cls(
            grid_points=document.get("grid_points", GRID_POINTS),
            n_startup_trials=document.get("n_startup_trials", STARTUP_TRIALS),
            settings=SearcherSettings() if plugin is not None else SearcherSettings.model_validate(settings),
            pruner=pruner_from_json(document["pruner"]) if "pruner" in document else None,
            constraints=Constraints.model_validate(document.get("constraints", {})),
            objectives=tuple(document.get("objectives", ("accuracy",))),
            selection=Selection.model_validate(document["selection"]) if "selection" in document else None,
            enqueue=tuple(document.get("enqueue", ())),
            plugin_settings=plugin,
            beginning=Beginning.from_json(document["warm_start"]) if "warm_start" in document else None,
        )


class Wanted(_Strict):
    """Constraints, objectives and selection of a study; an arm may override them."""

    constraints: Constraints | None = Field(None, description="Limits on the network of a trial.")
    objectives: list[Objective] | None = Field(
        None,
        description="What is optimized: accuracy, which is the metric of the study, and optionally costs to minimize; "
        "accuracy alone if left out.",
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

    searcher: SearcherChoice | None = Field(
        None,
        description="Search algorithm: its name, or a mapping of `name` and its settings; random if left out.",
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
        description=f"Random trials before the model is used, for searcher tpe, gp or cmaes; {STARTUP_TRIALS} if "
        "left out.",
    )
    pruner: PrunerChoice | None = Field(None, description="Early stopping of trials; none if left out.")
    enqueue: list[dict[str, bool | int | float | str]] | None = Field(
        None,
        max_length=1000,
        description="Points that are tried before the search proposes any: the values of all parameters of the spaces, "
        "by name. They are charged like other trials.",
    )
    warm_start: WarmStart | None = Field(
        None,
        description="An earlier study whose best trials are tried first, after `enqueue`. They are trained again and "
        "charged like other trials.",
    )


@dataclass(frozen=True, slots=True)
class Options:
    """The search options of an arm, with those of the arm that it extends and of the study where it has none.

    Args:
        searcher: Search algorithm, with its settings.
        grid_points: Values per numeric parameter; None for the default.
        n_startup_trials: Random trials; None for the default.
        pruner: Early stopping, as the study file has it.
        constraints: Limits on the network of a trial.
        objectives: What is optimized.
        selection: Which trial is retrained.
        enqueue: Points that are tried first.
        warm_start: An earlier study whose best trials are tried after these.
    """

    searcher: Searcher
    grid_points: int | None
    n_startup_trials: int | None
    pruner: AnyPruner | None
    constraints: Constraints
    objectives: tuple[Objective, ...]
    selection: Selection | None
    enqueue: tuple[Point, ...]
    warm_start: WarmStart | None = None

    @classmethod
    def of(cls, arm: Searching, base: Searching, study: Wanted) -> Self:
        """Return the options of an arm.

        Args:
            arm: Options of the arm.
            base: Options of the arm that it extends.
            study: Options of the study.
        """
        searcher = arm.searcher or base.searcher or SearcherOptions(name="random")
        beside = searcher if isinstance(searcher, SearcherOptions) else SearcherOptions(name="random")
        return cls(
            searcher=searcher,
            grid_points=beside.grid_points or arm.grid_points or base.grid_points,
            n_startup_trials=beside.n_startup_trials or arm.n_startup_trials or base.n_startup_trials,
            pruner=arm.pruner or base.pruner,
            constraints=arm.constraints or base.constraints or study.constraints or Constraints(),
            objectives=tuple(arm.objectives or base.objectives or study.objectives or ["accuracy"]),
            selection=arm.selection or base.selection or study.selection,
            enqueue=tuple((arm.enqueue if arm.enqueue is not None else base.enqueue) or ()),
            warm_start=arm.warm_start or base.warm_start,
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
        yield from self.searcher.conflicts()
        name = self.searcher.name
        beside = self.searcher if isinstance(self.searcher, SearcherOptions) else None
        for key in ("grid_points", "n_startup_trials"):
            is_of_arm = getattr(self, key) is not None and getattr(beside, key, None) is None
            if is_of_arm and key not in SEARCHERS.get(name, ()):
                owners = [owner for owner, settings in SEARCHERS.items() if key in settings]
                message = f"{key}: belongs to searcher {' or '.join(owners)}, this arm has searcher {name}"
                yield Conflict(message, key, "searcher")
        yield from self._unable()
        if self.enqueue and name == "grid":
            yield Conflict("enqueue: a grid tries every point anyway; leave one of the two out", "enqueue", "searcher")
        if self.warm_start is not None and name == "grid":
            message = "warm_start: a grid tries every point anyway; leave one of the two out"
            yield Conflict(message, "warm_start", "searcher")
        if self.pruner is not None:
            yield from self.pruner.conflicts(epochs)
        yield from _unselectable(self.pruner, self.objectives, self.selection)

    def _unable(self) -> Iterator[Conflict]:
        """Yield what the arm asks of its search algorithm that this one cannot do."""
        name = self.searcher.name
        several = len(self.objectives) > 1
        if name in ONE_OBJECTIVE and several:
            message = f"searcher: {name} compares trials by accuracy alone, and cannot search for several objectives"
            yield Conflict(f"{message}: use tpe, gp, nsga2 or nsga3", "searcher", "objectives")
        if not isinstance(self.searcher, PluginSearcher):
            return
        try:
            algorithm = algorithm_named(name)
        except Conflict:  # which is reported by itself
            return
        assert algorithm is not None, "it is a plug-in"
        if several and not algorithm.several_objectives:
            message = f"searcher: {name} declares that it cannot search for several objectives"
            yield Conflict(f"{message}: use tpe, gp, nsga2 or nsga3", "searcher", "objectives")
        if self.constraints.limits and not algorithm.constraints:
            message = f"searcher: {name} declares that it cannot search under constraints"
            yield Conflict(f"{message}: use another searcher, or leave them out", "searcher", "constraints")

    def rules(self, *, epochs: int, beginning: Beginning | None = None) -> Rules:
        """Return the rules by which the arm searches.

        Args:
            epochs: Epochs of a trial.
            beginning: Trials of an earlier study with which it begins.

        Raises:
            Conflict: The options contradict each other.
        """
        refuse(self.conflicts(epochs=epochs))
        return Rules(
            grid_points=self.points,
            n_startup_trials=self.n_startup_trials or STARTUP_TRIALS,
            settings=self.searcher.settings if isinstance(self.searcher, SearcherOptions) else SearcherSettings(),
            pruner=self.pruner.resolved(epochs) if self.pruner else None,
            constraints=self.constraints,
            objectives=self.objectives,
            selection=self.selection,
            enqueue=self.enqueue,
            plugin_settings=self.searcher.own_settings() if isinstance(self.searcher, PluginSearcher) else None,
            beginning=beginning,
        )

    @property
    def searcher_name(self) -> str:
        """The one name of the search algorithm, also of one that is named by its place."""
        return SEARCHER_CHOICES.canonical(self.searcher.name)


def _unselectable(
    pruner: AnyPruner | None, objectives: Sequence[Objective], selection: Selection | None
) -> Iterator[Conflict]:
    if pruner is not None and len(objectives) > 1:
        message = "pruner: trials with several objectives cannot be stopped early: leave one of the two out"
        yield Conflict(message, "pruner", "objectives")
    if selection is not None and selection.objective not in objectives:
        message = f"selection.objective: must be one of the objectives {list(objectives)}, got {selection.objective!r}"
        yield Conflict(message, "selection.objective", "objectives")
