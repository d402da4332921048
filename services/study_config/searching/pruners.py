"""Early stopping: its kinds by name, and which settings each of them has."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nas_blockout.serialization import count_of
from nas_blockout.settings_fields import Conflict, refuse

PrunerName = Literal["asha", "successive_halving", "hyperband", "median", "patient"]
# By name: the settings that it has.
PRUNERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "asha": ("rungs", "reduction_factor"),
        "hyperband": ("reduction_factor", "min_epochs"),
        "median": ("n_startup_trials", "warmup_epochs", "interval_epochs", "min_trials"),
        "patient": ("patience", "min_delta", "wraps"),
    }
)
_SAME = {"successive_halving": "asha"}


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
        inner = () if self.wraps is None else PRUNERS[_SAME.get(self.wraps, self.wraps)]
        return (*PRUNERS[_SAME.get(self.name, self.name)], *(name for name in inner if self.wraps != "patient"))

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
        names = {"name": _SAME.get(self.name, self.name)}
        if self.wraps is not None:
            names["wraps"] = _SAME.get(self.wraps, self.wraps)
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
        kinds = {_SAME.get(name, name) for name in (self.name, self.wraps) if name is not None}
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
