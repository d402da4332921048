"""Early stopping: its kinds by name, and which settings each of them has."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue

from nas_blockout.serialization import count_of, from_json, to_json
from nas_blockout.settings_fields import Conflict, refuse
from services.search_plugins import PRUNER_CHOICES, PRUNERS, SAME_PRUNER, rule_named
from services.study_config import settings_models
from services.study_config.searching.searchers import unknown_name, unusable_settings

PrunerName = Literal["asha", "successive_halving", "hyperband", "median", "patient"]


class Pruner(BaseModel):
    """How trials are stopped early; `docs/guides/searching.md` says how each kind decides.

    References:
        Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar. A System for Massively Parallel
        Hyperparameter Tuning. MLSys 2020. Differs from the paper in: trials are stopped, never paused and promoted.

        Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. Hyperband: A Novel Bandit-Based Approach to Hyperparameter
        Optimization. JMLR 18, 2018. As in Optuna, brackets are filled side by side, and each halves asynchronously.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: PrunerName = Field(
        description="Early stopping: asynchronous successive halving (asha, or successive_halving), brackets of it "
        "(hyperband), the median of complete trials, or a trial that no longer improves (patient)."
    )
    rungs: list[int] | None = Field(
        None,
        description="Of asha: epochs after which trials are compared; by default the epochs divided by powers of the "
        "factor.",
    )
    reduction_factor: int = Field(
        3, ge=2, le=64, description="Of asha and hyperband: at each rung one trial in this many continues."
    )
    min_epochs: int = Field(1, ge=1, le=100_000, description="Of hyperband: epochs before the first rung.")
    n_startup_trials: int = Field(
        5, ge=0, le=1000, description="Of median: complete trials before any trial is stopped."
    )
    warmup_epochs: int = Field(
        0, ge=0, le=100_000, description="Of median: epochs after which no trial is compared yet."
    )
    interval_epochs: int = Field(1, ge=1, le=100_000, description="Of median: epochs between two comparisons.")
    min_trials: int = Field(
        1, ge=1, le=1000, description="Of median: complete trials with this epoch that a comparison needs."
    )
    patience: int | None = Field(
        None, ge=0, le=100_000, description="Of patient, which needs it: epochs that may pass without an improvement."
    )
    min_delta: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="Of patient: the accuracy that an improvement may lack."
    )
    wraps: PrunerName | None = Field(
        None,
        description="Of patient: another kind, whose settings stand beside, that decides on trials that no longer "
        "improve; without it they are stopped.",
    )
    max_epochs: int | None = Field(
        None, ge=1, description="Epochs of a trial: those of its training; no other value is accepted."
    )

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: list[int] | None) -> list[int] | None:
        if rungs is not None and (not rungs or rungs != sorted(set(rungs)) or rungs[0] < 1):
            raise ValueError("rungs must be one epoch or more, each later than the one before, from 1 on")
        return rungs

    @property
    def wrapped(self) -> "Pruner | None":
        """The pruner that this one wraps, with its settings, or None."""
        return None if self.wraps is None else self.model_copy(update={"name": self.wraps, "wraps": None})

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that it has, with those of the pruner that it wraps."""
        inner = () if self.wraps is None else PRUNERS[SAME_PRUNER.get(self.wraps, self.wraps)]
        return (*PRUNERS[SAME_PRUNER.get(self.name, self.name)], *(name for name in inner if self.wraps != "patient"))

    def conflicts(self, epochs: int) -> Iterator[Conflict]:
        """Yield every contradiction, for trials with this number of epochs."""
        for name in sorted(self.model_fields_set - {"name", "max_epochs", *self.settings}):
            if getattr(self, name) is not None:
                message = f"pruner.{name}: pruner {self.name} has no such setting; it has {', '.join(self.settings)}"
                yield Conflict(message, f"pruner.{name}", "pruner.name")
        if self.name == "patient" and self.patience is None:
            yield Conflict(
                "pruner.patience: pruner patient needs this key: epochs without an improvement", "pruner.patience"
            )
            return
        if self.wraps == "patient":
            yield Conflict("pruner.wraps: must be another pruner than patient itself, got 'patient'", "pruner.wraps")
            return
        if self.max_epochs not in (None, epochs):
            rule = f"pruner.max_epochs: must be the {count_of(epochs, 'epoch')} of a trial, got {self.max_epochs}"
            yield Conflict(rule, "pruner.max_epochs", "training.epochs")
        if (conflict := self._too_short(epochs)) is not None:
            yield conflict

    def resolved(self, epochs: int) -> "Pruner":
        """Return the pruner with its rungs, for trials with this number of epochs.

        Raises:
            ValueError: Settings contradict each other, or a trial is too short.
        """
        refuse(self.conflicts(epochs))
        names = {"name": SAME_PRUNER.get(self.name, self.name)}
        if self.wraps is not None:
            names["wraps"] = SAME_PRUNER.get(self.wraps, self.wraps)
        asha = "asha" in names.values()
        rungs = self.rungs or self._default_rungs(epochs) if asha else None
        longest = None if names == {"name": "asha"} else epochs
        return self.model_copy(update={**names, "rungs": rungs, "max_epochs": longest})

    def brackets(self) -> list[list[int]]:
        """Return the rungs of each bracket of Hyperband, resolved; the last of them may have none."""
        assert self.max_epochs is not None, "a resolved pruner"
        # The logarithm of two floats, as in Optuna: for 243 epochs and a factor of 3 it gives one bracket less.
        count = math.floor(math.log(self.max_epochs / self.min_epochs, self.reduction_factor)) + 1
        return [self._rungs_from(self.min_epochs * self.reduction_factor**bracket) for bracket in range(count)]

    def comparisons(self) -> list[int]:
        """Return the epochs after which a trial is compared with the median, resolved."""
        assert self.max_epochs is not None, "a resolved pruner"
        return list(range(self.warmup_epochs + 1, self.max_epochs, self.interval_epochs))

    @property
    def earliest(self) -> int:
        """Epochs after which a trial may be stopped for the first time; resolved."""
        if self.name == "patient":
            assert self.patience is not None
            inner = self.wrapped
            return max(self.patience + 2, inner.earliest if inner is not None else 1)
        if self.name == "median":
            return self.comparisons()[0]
        return self.min_epochs if self.name == "hyperband" else (self.rungs or [1])[0]

    def to_json(self) -> dict[str, Any]:
        """Return its name and the settings that it has, resolved, as plain JSON types."""
        ends = () if self.max_epochs is None else ("max_epochs",)
        return {name: getattr(self, name) for name in ("name", *self.settings, *ends)}

    def _rungs_from(self, first: int) -> list[int]:
        assert self.max_epochs is not None
        rungs = []
        while first < self.max_epochs:
            rungs.append(first)
            first *= self.reduction_factor
        return rungs

    def _default_rungs(self, epochs: int) -> list[int]:
        rungs = []
        while (epochs := epochs // self.reduction_factor) > 0:
            rungs.append(epochs)
        return rungs[::-1]

    def _too_short(self, epochs: int) -> Conflict | None:
        """Return what says that no trial of so many epochs would ever be stopped, or None."""
        kinds = {SAME_PRUNER.get(name, name) for name in (self.name, self.wraps) if name is not None}
        if "asha" in kinds and self.rungs is not None:
            if self.rungs[-1] >= epochs:
                message = f"pruner.rungs: must end before the last of {count_of(epochs, 'epoch')}, got {self.rungs}"
                return Conflict(message, "pruner.rungs", "training.epochs")
            return None
        needs = {
            "asha": (self.reduction_factor, "the reduction_factor"),
            "hyperband": (self.min_epochs * self.reduction_factor, "min_epochs times the reduction_factor"),
            "median": (self.warmup_epochs + 2, "warmup_epochs + 2"),
            "patient": ((self.patience or 0) + 3, "patience + 3"),
        }
        for kind in sorted(kinds):
            least, why = needs[kind]
            if epochs < least:
                message = (
                    f"pruner: trials need at least {count_of(least, 'epoch')} ({why}) to be stopped early; train "
                    "longer or leave the pruner out"
                )
                return Conflict(message, "pruner", "training.epochs")
        return None


class PluginPruner(BaseModel):
    """Early stopping of a plug-in, with its settings beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(description="Name of the plug-in, or the place of its code.")
    max_epochs: int | None = Field(None, ge=1, description="Epochs of a trial, resolved.")

    def own_settings(self) -> Any:
        """Return its settings as the plug-in has them.

        Raises:
            ValueError: There is no such plug-in, it cannot be used, or refuses its settings.
        """
        rule = rule_named(self.name)
        assert rule is not None, "it is a plug-in"
        return from_json(rule.settings, self.model_extra or {}, where="pruner")

    def conflicts(self, epochs: int) -> Iterator[Conflict]:
        """Yield why it cannot be used with its settings, for trials with this number of epochs."""
        if self.max_epochs not in (None, epochs):
            rule = f"pruner.max_epochs: must be the {count_of(epochs, 'epoch')} of a trial, got {self.max_epochs}"
            yield Conflict(rule, "pruner.max_epochs", "training.epochs")

        def make(settings: Any, name: str) -> None:
            rule = rule_named(name)
            assert rule is not None, "it is a plug-in"
            rule.rule(settings, epochs)

        yield from unusable_settings(self.own_settings, PRUNER_CHOICES, self.name, make)

    def resolved(self, epochs: int) -> "PluginPruner":
        """Return it with every setting and the one name of its plug-in, for trials with this number of epochs.

        Raises:
            ValueError: It cannot be used.
        """
        refuse(self.conflicts(epochs))
        settings = to_json(self.own_settings())
        return PluginPruner(name=PRUNER_CHOICES.canonical(self.name), max_epochs=epochs, **settings)

    @property
    def earliest(self) -> int:
        """Epochs after which a trial may be stopped for the first time, as far as is known."""
        return 1

    def to_json(self) -> dict[str, Any]:
        """Return its name and its settings, resolved, as plain JSON types."""
        return {"name": self.name, **(self.model_extra or {}), "max_epochs": self.max_epochs}


AnyPruner = Pruner | PluginPruner


def fewest_epochs(epochs: int, pruner: AnyPruner | None) -> int:
    """Return the epochs after which a trial may be stopped, for the first time; 1 where that is not known."""
    if pruner is None:
        return epochs
    try:
        return pruner.resolved(epochs).earliest
    except Conflict:  # which is reported where the pruner is checked
        return 1


def pruner_from_json(document: Mapping[str, Any]) -> AnyPruner:
    """Read early stopping back from the result of its `to_json`."""
    is_built_in = document.get("name") in PRUNER_CHOICES.built_in
    return Pruner.model_validate(document) if is_built_in else PluginPruner.model_validate(document)


def _read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Read built-in early stopping, or that of a plug-in."""
    if isinstance(value, BaseModel):
        return value
    name = value.get("name") if isinstance(value, Mapping) else None
    if isinstance(name, str) and name not in PRUNER_CHOICES.built_in:
        if PRUNER_CHOICES.is_known(name):
            return PluginPruner.model_validate(value)
        unknown = unknown_name(PRUNER_CHOICES.names())
        raise ValidationError.from_exception_data("pruner", [{"type": unknown, "loc": ("name",), "input": name}])
    return Pruner.model_validate(value)  # the handler would report one error for each kind of pruner


class _Schema:
    """The JSON Schema of early stopping, with plug-ins where they are shown."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the schema instead of that of both models."""
        built_in: JsonSchemaValue = handler(schema)["anyOf"][0]  # the first of the models below
        shown = settings_models.shown_plugins("pruner")
        own = [settings_models.model("pruner", name, named=True).model_json_schema() for name in shown]
        return {"anyOf": [built_in, *own]} if own else built_in


PrunerChoice = Annotated[Pruner | PluginPruner, WrapValidator(_read), _Schema()]
