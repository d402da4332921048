"""Simulation of asynchronous workers that run recorded trials in simulated time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from services.replay.pool import nearest
from services.search.scheduler import Scheduler
from services.study_config.resolved_study import Study
from services.study_config.schema import Budget
from services.study_config.searching.searchers import SearcherSettings, searcher_settings
from services.trial_record import SEARCH, Json, Trial

_UNLIMITED = 1 << 62  # sample passes: a replay ends when the pool is empty, not when a budget is spent


@dataclass(frozen=True, slots=True)
class PoolTrial:
    """A recorded trial that is used in a replay.

    Args:
        index: Index of the trial in the pool.
        number: Number of the proposal for which it is used, from 0.
        distance: Distance to the proposal, in [0, 1]; None if it was drawn at random, without a proposal.
        sampler: What the sampler of the replay noted with the proposal, such as its generation.
    """

    index: int
    number: int
    distance: float | None = None
    sampler: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """A simulated run of a recorded trial from `started` to `finished`, in seconds of simulated time."""

    trial: PoolTrial
    started: float
    finished: float


class Proposer(Protocol):
    """Chooses which recorded trial comes next."""

    def next(self) -> PoolTrial | None:
        """Return the next trial, or None if none is left or none can be proposed before another has ended."""

    def ended(self, trial: PoolTrial) -> None:
        """Take the result of a trial into account."""


class ShuffledProposer:
    """Random search over the pool: every recorded trial once, in an order that depends on the seed."""

    def __init__(self, pool: Sequence[Trial], seed: int) -> None:
        self._order = np.random.default_rng(seed).permutation(len(pool)).tolist()
        self._number = 0

    def next(self) -> PoolTrial | None:
        """Return the next trial in this order."""
        if self._number == len(self._order):
            return None
        self._number += 1
        return PoolTrial(self._order[self._number - 1], self._number - 1)

    def ended(self, trial: PoolTrial) -> None:
        """Do nothing: random search does not depend on results."""


class SchedulerProposer:
    """The scheduler of a study with a searcher; each proposal is replaced by the nearest unused recorded trial.

    The searcher then learns from the recorded trial and its parameters, not from its own proposal, which was never
    trained.

    Args:
        study: A study whose only arm is the one to replay, with its searcher and seed.
        pool: The recorded trials.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Number of training images.
    """

    def __init__(
        self, study: Study, pool: Sequence[Trial], *, shape: tuple[int, int, int], classes: int, images: int
    ) -> None:
        (self._arm,) = study.arms
        self._pool = pool
        self._left = set(range(len(pool)))
        self._scheduler = Scheduler(study, shape=shape, classes=classes, images=images)

    def next(self) -> PoolTrial | None:
        """Return the recorded trial nearest to the searcher's next proposal."""
        proposal = self._scheduler.next() if self._left else None
        # A retraining means that the search has ended by itself, as on a grid; the rest of the pool stays unused.
        if proposal is None or proposal.phase != SEARCH:
            return None
        index, apart = nearest(proposal, self._pool, sorted(self._left))
        self._left.remove(index)
        used = PoolTrial(index, proposal.number, apart, proposal.sampler)
        self._update(used, state="running")
        return used

    def ended(self, trial: PoolTrial) -> None:
        """Pass the recorded result of the trial to the scheduler."""
        self._update(trial, state=self._pool[trial.index].state)

    def _update(self, trial: PoolTrial, *, state: str) -> None:
        # Under the number of the proposal, which the scheduler knows; the recorded number may belong to another one.
        recorded = self._pool[trial.index]
        params = {key: value for key, value in recorded.params.items() if key != "sampler"}
        params |= {"sampler": trial.sampler} if trial.sampler else {}
        self._scheduler.update(replace(recorded, arm=self._arm, number=trial.number, state=state, params=params))


def single_arm(study: Study, arm: str, *, searcher: str, seed: int) -> Study:
    """Return a study that consists of the search of one arm, with this searcher and seed and an unlimited budget."""
    config = study.config.model_copy(update={"seed": seed, "budget": Budget(sample_passes=_UNLIMITED)})
    # Without `match`, which would wait for an arm that is not there.
    replayed = study.arms[arm]
    if searcher != replayed.searcher:  # whose settings are not those of another one
        rules = replace(
            replayed.rules, settings=SearcherSettings(), plugin_settings=searcher_settings(searcher, values={})
        )
        replayed = replace(replayed, searcher=searcher, rules=rules)
    return replace(study, config=config, arms={arm: replace(replayed, match=None)})


def simulate(pool: Sequence[Trial], proposer: Proposer, workers: int) -> list[Ended]:
    """Run recorded trials in simulated time until none is left; return them in the order in which they end.

    As soon as a worker is free, it starts the next trial, which depends on the trials that have ended by then. A trial
    takes its recorded training time; proposing takes no time.

    Args:
        pool: The recorded trials.
        proposer: Chooses the next trial.
        workers: Number of trials that run at the same time.
    """
    now, order = 0.0, 0
    running: list[tuple[float, int, float, PoolTrial]] = []  # (end, order of the start, start, trial): ties by start
    ended: list[Ended] = []
    while True:
        while len(running) < workers and (trial := proposer.next()) is not None:
            heapq.heappush(running, (now + pool[trial.index].seconds, order, now, trial))
            order += 1
        if not running:  # nobody works, and still nothing was proposed: there will be nothing more
            return ended
        now, _, started, trial = heapq.heappop(running)
        proposer.ended(trial)
        ended.append(Ended(trial, started, now))
