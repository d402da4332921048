"""What Optuna's samplers are told of an arm: all trials of a short search, of a long one the best and the latest.

A sampler asked anew reads its whole history, so that with all trials in it a search takes quadratic time. TPE divides
what it is told into the best 25 trials at most and the rest, in which the latest count most: the other trials hardly
change what it proposes (docs/results/many-trials.md has the effect measured).
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Self

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from services.search.constraints import exceeded_after
from services.study_config.search_options import Rules
from services.trial_record import Infeasible, Trial

HISTORY_LIMIT = 250
_BEST_SHARE = 4  # one in so many of the limit are the best ones
Rank = tuple[float, ...]  # less is better


class SamplerHistory:
    """Trials of an arm as Optuna's.

    Complete trials are told with their values, pruned ones as pruned with their last value, failed ones as failed;
    trials that still run are left out. Infeasible proposals, and trials that exceed a limit after all, are told as
    pruned with their constraints.

    Args:
        rules: Objectives and constraints.
        limit: Largest number of trials that are told, infeasible proposals included; of more, the best quarter and the
            latest. With several objectives the best are those that no other is better than.
    """

    def __init__(self, rules: Rules, limit: int = HISTORY_LIMIT) -> None:
        self.rules, self._limit = rules, limit
        self._trials: dict[int, Trial] = {}
        self._numbers: list[int] = []  # rising
        self._frozen: dict[int, tuple[FrozenTrial, ...]] = {}  # of those told the last time
        self._size = 0  # what a history of all trials would have
        self._best: list[tuple[Rank, int]] | None = []  # rising; None: to be found again

    @classmethod
    def of(cls, trials: Iterable[Trial], rules: Rules | None = None, limit: int = HISTORY_LIMIT) -> Self:
        """Return the history of these trials."""
        history = cls(rules or Rules(), limit)
        for trial in trials:
            history.update(trial)
        return history

    def update(self, trial: Trial) -> None:
        """Add a trial, or replace it by its new state."""
        before = self._trials.get(trial.number)
        if before is None:
            insort(self._numbers, trial.number)
        else:
            self._size -= _entries(before)
            self._frozen.pop(trial.number, None)
            if before.ended:  # only in a replay: in the store the end of a trial is final
                self._best = None
        self._trials[trial.number] = trial
        self._size += _entries(trial)
        if self._best is not None:
            self._add(self._best, trial)

    @property
    def first(self) -> Trial | None:
        """The first trial that a searcher chose parameters for, whether or not it has ended."""
        return next((trial for number in self._numbers if (trial := self._trials[number]).is_suggested), None)

    def backwards(self) -> Iterator[Trial]:
        """Yield all trials, the last one first."""
        return (self._trials[number] for number in reversed(self._numbers))

    def latest(self, count: int) -> list[tuple[Rank, Trial]]:
        """Return the latest trials that are complete or were stopped early, with their ranks; the last one first.

        Args:
            count: How many, if there are so many.
        """
        ranked = ((self._rank(trial), trial) for trial in self.backwards())
        return list(islice(((rank, trial) for rank, trial in ranked if rank is not None), count))

    def told(self, infeasible: Iterable[Infeasible] = (), *, whole: bool = False) -> list[FrozenTrial]:
        """Return what a sampler is told, in the order of the trials' numbers.

        Args:
            infeasible: Proposals that have been rejected since the last trial.
            whole: Whether all trials are told, however many they are.
        """
        numbers = self._numbers if whole or self._size <= self._limit else self._bounded()
        # What was told before and is not now is dropped: it would stay in memory for the rest of the study.
        self._frozen = {number: self._frozen.get(number) or tuple(self._frozen_of(number)) for number in numbers}
        told = [*(each for number in numbers for each in self._frozen[number]), *map(_pruned, infeasible)]
        for position, each in enumerate(told):
            each.number = position  # by which samplers put them in order
        return told

    def _bounded(self) -> list[int]:
        if self._best is None:
            self._best = []
            for trial in self._trials.values():
                self._add(self._best, trial)
        chosen = {number for _, number in self._best}
        left = self._limit - sum(_entries(self._trials[number]) for number in chosen)
        for number in reversed(self._numbers):
            if (left := left - (0 if number in chosen else _entries(self._trials[number]))) < 0:
                break
            chosen.add(number)
        return sorted(chosen)

    def _add(self, best: list[tuple[Rank, int]], trial: Trial) -> None:
        """Add a trial to the best ones, if it is one of them, and drop whichever no longer is."""
        if (rank := self._rank(trial)) is None:
            return
        if len(self.rules.objectives) > 1:
            if any(_dominates(other, rank) for other, _ in best):
                return
            best[:] = [(other, number) for other, number in best if not _dominates(rank, other)]
        insort(best, (rank, trial.number))
        if len(best) > self._limit // _BEST_SHARE:
            best.pop()

    def _rank(self, trial: Trial) -> Rank | None:
        """Return the rank of a trial in the order of TPE, None if it is never among the best."""
        if not trial.ended or not trial.is_suggested:
            return None
        several = len(self.rules.objectives) > 1
        values = self._values(trial)
        if values is not None:
            losses = tuple(-value if name == "accuracy" else value for name, value in zip(*values, strict=True))
            return losses if several else (0.0, 0.0, *losses)
        if (stopped := trial.stopped_at) is not None and not several:
            return 1.0, -float(stopped[0]), -stopped[1]
        return None

    def _values(self, trial: Trial) -> tuple[tuple[str, ...], list[float]] | None:
        """Return the objectives and what was measured, None unless the trial is complete and within the constraints."""
        if trial.state != "complete" or exceeded_after(trial, self.rules.constraints):
            return None
        values = [trial.measured(objective) for objective in self.rules.objectives]
        known = [value for value in values if value is not None]
        return (self.rules.objectives, known) if len(known) == len(values) else None

    def _frozen_of(self, number: int) -> Iterator[FrozenTrial]:
        trial, rules = self._trials[number], self.rules
        yield from map(_pruned, trial.infeasible)  # what was rejected before this trial was proposed
        if not trial.ended or not trial.is_suggested:
            return
        if trial.state == "complete" and (exceeded := exceeded_after(trial, rules.constraints)):
            yield _pruned(Infeasible(trial.values, trial.distributions, exceeded))
        elif (values := self._values(trial)) is not None:
            yield _told(trial, TrialState.COMPLETE, values=values[1])
        elif (stopped := trial.stopped_at) is not None:
            epoch, accuracy = stopped
            yield _told(trial, TrialState.PRUNED, intermediate_values={epoch: accuracy})
        else:
            yield _told(trial, TrialState.FAIL)


def _entries(trial: Trial) -> int:
    """Return as how many trials of Optuna a trial is told."""
    return trial.proposals if trial.ended else len(trial.params.get("infeasible", ()))


def _dominates(better: Rank, worse: Rank) -> bool:
    return better != worse and all(a <= b for a, b in zip(better, worse, strict=True))


def _pruned(proposal: Infeasible) -> FrozenTrial:
    """Return an infeasible proposal as TPE learns from it: pruned, with the share by which each limit is exceeded.

    The Gaussian process ignores it: without a value it has nothing to fit.
    """
    amounts = {name: value / limit - 1 for name, (value, limit) in proposal.exceeded.items()}
    return _told(proposal, TrialState.PRUNED, constraints=amounts)


def _told(source: Trial | Infeasible, state: TrialState, **outcome: Any) -> FrozenTrial:
    return create_trial(
        state=state,
        system_attrs=dict(source.sampler) if isinstance(source, Trial) else {},
        params=dict(source.values),
        distributions=_distributions(tuple(source.distributions.items())),
        **outcome,
    )


@lru_cache(maxsize=1024)
def _distributions(texts: tuple[tuple[str, str], ...]) -> dict[str, BaseDistribution]:
    """Return what parameters were drawn from, by name: one dictionary for all trials that were drawn alike."""
    return {name: json_to_distribution(text) for name, text in texts}
