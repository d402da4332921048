"""The kinds of early stopping beside ASHA: Hyperband, the median of complete trials, and patience.

They decide as Optuna's pruners do, which the tests ask too, where every epoch is reported: Hyperband and patience with
the epochs so far as the step, the median with the epoch, from 0.
"""

import math
from binascii import crc32
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from nas_blockout.plugins.named_code import told
from nas_blockout.serialization import count_of
from services.search.asha import Rungs
from services.search.early_stopping import EarlyStopping
from services.search_plugins import PRUNER_CHOICES, rule_named
from services.study_config.searching.pruners import AnyPruner, PluginPruner
from services.trial_record import Trial


def early_stopping(pruner: AnyPruner) -> EarlyStopping:
    """Return what a pruner decides by.

    Args:
        pruner: Settings, resolved.

    Raises:
        ValueError: It is that of a plug-in, which fails, or gives something else.
    """
    if isinstance(pruner, PluginPruner):
        return _of_plugin(pruner)
    if pruner.name == "hyperband":
        return Hyperband(pruner.brackets(), pruner.reduction_factor)
    if pruner.name == "median":
        return Median(pruner.comparisons(), startup=pruner.n_startup_trials, least=pruner.min_trials)
    if pruner.name == "patient":
        assert pruner.max_epochs is not None, "a resolved pruner"
        assert pruner.patience is not None, "a pruner that needs it"
        wrapped = early_stopping(pruner.wrapped) if pruner.wrapped is not None else None
        return Patient(pruner.patience, pruner.min_delta, epochs=pruner.max_epochs, wrapped=wrapped)
    return Rungs(pruner.rungs or (), pruner.reduction_factor)


def _of_plugin(pruner: PluginPruner) -> EarlyStopping:
    rule = rule_named(pruner.name)
    assert rule is not None, "it is a plug-in"
    origin = PRUNER_CHOICES.origin(pruner.name)
    try:
        made = rule.rule(pruner.own_settings(), pruner.max_epochs or 1)
    except Exception as error:
        raise ValueError(f"the pruner {origin} failed: {told(error)}") from error
    if not isinstance(made, EarlyStopping):
        raise ValueError(f"the pruner {origin} must give a services.search.early_stopping.EarlyStopping, got {made!r}")
    return made


class Hyperband(EarlyStopping):
    """Brackets of asynchronous successive halving; the later a bracket has its first rung, the fewer trials it gets.

    References:
        Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. Hyperband: A Novel Bandit-Based Approach to Hyperparameter
        Optimization. JMLR 18, 2018.

    Differs from the paper in: as in Optuna, all brackets are filled at the same time. The number of a trial decides on
    its bracket, by a checksum, so that brackets have their shares of any longer run of trials.

    Args:
        brackets: Rungs of each bracket.
        reduction_factor: At each rung one trial in this many goes on.
    """

    def __init__(self, brackets: Sequence[Sequence[int]], reduction_factor: int) -> None:
        self._brackets = [Rungs(rungs, reduction_factor) for rungs in brackets]
        last = len(brackets) - 1
        self._shares = [
            math.ceil(len(brackets) * reduction_factor ** (last - bracket) / (last - bracket + 1))
            for bracket in range(len(brackets))
        ]

    def bracket(self, number: int) -> int:
        """Return the bracket of the trial of a number."""
        # Optuna's choice, for a study that is called "bracket": the same one in every arm and every study.
        place = crc32(f"bracket_{number}".encode()) % sum(self._shares)
        for bracket, share in enumerate(self._shares):
            if (place := place - share) < 0:
                return bracket
        raise AssertionError("the place is less than the sum of the shares")

    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the rungs of the bracket of a trial."""
        return self._of(number).rungs(number)

    def update(self, trial: Trial) -> None:
        """Take note of the rungs that a trial has reached."""
        self._of(trial.number).update(trial)

    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial is stopped at a rung, compared with those of its bracket."""
        why = self._of(trial.number).reason_at(trial, rung)
        return None if why is None else f"bracket {self.bracket(trial.number) + 1} of {len(self._brackets)}: {why}"

    def _of(self, number: int) -> Rungs:
        return self._brackets[self.bracket(number)]


class Median(EarlyStopping):
    """Stops a trial whose best accuracy so far is below the median of complete trials after as many epochs.

    References:
        Golovin, Solnik, Moitra, Kochanski, Karro, Sculley. Google Vizier: A Service for Black-Box Optimization. KDD
        2017. Differs from it in: as in Optuna, the median is of accuracies after an epoch, not of their means until it.

    Args:
        comparisons: Epochs after which trials are compared, rising.
        startup: Complete trials before any trial is stopped.
        least: Complete trials with an epoch that a comparison after it needs.
    """

    def __init__(self, comparisons: Sequence[int], *, startup: int, least: int) -> None:
        self._startup, self._least = max(startup, 1), least
        self._complete: dict[int, tuple[float, ...]] = {}  # curves by number
        self._rising: dict[int, list[float]] = {epoch: [] for epoch in comparisons}

    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the epochs after which trials are compared."""
        return tuple(self._rising)

    def update(self, trial: Trial) -> None:
        """Take note of a complete trial."""
        if (before := self._complete.pop(trial.number, None)) is not None:
            for epoch, rising in self._rising.items():
                if epoch <= len(before):
                    del rising[bisect_left(rising, before[epoch - 1])]
        if trial.state == "complete":
            self._complete[trial.number] = trial.curve
            for epoch, rising in self._rising.items():
                if epoch <= len(trial.curve):
                    insort(rising, trial.curve[epoch - 1])

    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial is stopped after an epoch, or None if it trains on."""
        values, best = self._rising[rung], max(trial.curve[:rung])
        if len(self._complete) < self._startup or len(values) < self._least or not values:
            return None
        median = float(np.percentile(values, 50))
        if not best < median:
            return None
        compared = count_of(len(values), "complete trial")
        return f"and its best of {best:.4f} is below {median:.4f}, the median of {compared} after as many epochs"


class Patient(EarlyStopping):
    """Lets a trial train on as long as it improves; then another kind decides, or it is stopped.

    Differs from Optuna in: ASHA and Hyperband compare all trials that have reached a rung, also those that improved.

    Args:
        patience: Epochs that may pass without an improvement.
        min_delta: What the latest best accuracy may lack of the best before and still counts as an improvement.
        epochs: Of a trial.
        wrapped: What decides on trials that no longer improve; None to stop them.
    """

    def __init__(self, patience: int, min_delta: float, *, epochs: int, wrapped: EarlyStopping | None) -> None:
        self._latest, self._delta, self._epochs, self._wrapped = patience + 1, min_delta, epochs, wrapped

    def bracket(self, number: int) -> int | None:
        """Return the bracket of a trial, where what decides has brackets."""
        return None if self._wrapped is None else self._wrapped.bracket(number)

    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the epochs after which a trial may be stopped."""
        inner = range(1, self._epochs) if self._wrapped is None else self._wrapped.rungs(number)
        return tuple(epoch for epoch in inner if epoch > self._latest)

    def update(self, trial: Trial) -> None:
        """Take note of a trial."""
        if self._wrapped is not None:
            self._wrapped.update(trial)

    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial is stopped after an epoch, or None if it trains on."""
        curve = trial.curve[:rung]
        before, latest = max(curve[: -self._latest]), max(curve[-self._latest :])
        if not before - self._delta > latest:
            return None
        waited = f"at most {latest:.4f} in the last {count_of(self._latest, 'epoch')}, and {before:.4f} before"
        if self._wrapped is None:
            return waited
        why = self._wrapped.reason_at(trial, rung)
        return None if why is None else f"{waited}; {why}"
