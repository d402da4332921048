"""Simulated workers: recorded trials run again in simulated time, asynchronously, in the order in which they end."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from services.replay.pool import nearest
from services.search.scheduler import Scheduler
from services.study_config.resolved_study import Study
from services.study_config.schema import Budget
from services.trial_record import SEARCH, Trial

_UNLIMITED = 1 << 62  # sample passes: the pool ends a replay, not the budget


@dataclass(frozen=True, slots=True)
class Drawn:
    """A recorded trial that answers a proposal.

    Args:
        index: Of the trial in the pool.
        number: Of the proposal, from 0.
        distance: Distance of the trial to the proposal, in [0, 1]; None if it was drawn at random, without a proposal.
    """

    index: int
    number: int
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A recorded trial that was run again from `started` to `finished`, in simulated seconds."""

    drawn: Drawn
    started: float
    finished: float


class Proposer(Protocol):
    """Chooses which recorded trial comes next."""

    def next(self) -> Drawn | None:
        """Return the next trial, or None if there is none left or none can be proposed now."""

    def ended(self, drawn: Drawn) -> None:
        """Take note of the result of a trial."""


class Shuffled:
    """Random search over the pool: every recorded trial once, in an order that the seed decides."""

    def __init__(self, pool: Sequence[Trial], seed: int) -> None:
        self._order = np.random.default_rng(seed).permutation(len(pool)).tolist()
        self._number = 0

    def next(self) -> Drawn | None:
        """Return the next trial of the order."""
        if self._number == len(self._order):
            return None
        self._number += 1
        return Drawn(self._order[self._number - 1], self._number - 1)

    def ended(self, drawn: Drawn) -> None:
        """Ignore the result: random search learns nothing."""


class Asked:
    """A searcher, asked by the scheduler that asks it in a study; the nearest recorded trial not yet run answers.

    The searcher is told the trial that answered, with its recorded parameters, not the one that it proposed.

    Args:
        study: With the one arm whose search is replayed, its searcher and seed.
        pool: What answers.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
    """

    def __init__(
        self, study: Study, pool: Sequence[Trial], *, shape: tuple[int, int, int], classes: int, images: int
    ) -> None:
        (self._arm,) = study.arms
        self._pool = pool
        self._left = set(range(len(pool)))
        self._scheduler = Scheduler(study, shape=shape, classes=classes, images=images)

    def next(self) -> Drawn | None:
        """Return the recorded trial that answers the searcher's next proposal."""
        proposal = self._scheduler.next() if self._left else None
        if proposal is None or proposal.phase != SEARCH:
            return None
        index, apart = nearest(proposal, self._pool, sorted(self._left))
        self._left.remove(index)
        drawn = Drawn(index, proposal.number, apart)
        self._tell(drawn, state="running")
        return drawn

    def ended(self, drawn: Drawn) -> None:
        """Tell the searcher the recorded result of the trial."""
        self._tell(drawn, state=self._pool[drawn.index].state)

    def _tell(self, drawn: Drawn, *, state: str) -> None:
        recorded = self._pool[drawn.index]
        self._scheduler.update(replace(recorded, arm=self._arm, number=drawn.number, state=state))


def alone(study: Study, arm: str, *, searcher: str, seed: int) -> Study:
    """Return a study of one arm's search only, with an unlimited budget, another searcher and another seed."""
    config = study.config.model_copy(update={"seed": seed, "budget": Budget(sample_passes=_UNLIMITED)})
    return replace(study, config=config, arms={arm: replace(study.arms[arm], searcher=searcher, match=None)})


def simulate(pool: Sequence[Trial], proposer: Proposer, workers: int) -> list[Ended]:
    """Run recorded trials in simulated time until none is left; return them in the order in which they end.

    A free worker asks for the next trial at once, and the answer depends on the trials that have ended by then. Trials
    take the training time that was recorded; asking takes none.

    Args:
        pool: The recorded trials.
        proposer: Chooses which comes next.
        workers: Trials at once.
    """
    now, order = 0.0, 0
    running: list[tuple[float, int, float, Drawn]] = []  # by end, ties in the order in which they began
    ended: list[Ended] = []
    while True:
        while len(running) < workers and (drawn := proposer.next()) is not None:
            heapq.heappush(running, (now + pool[drawn.index].seconds, order, now, drawn))
            order += 1
        if not running:
            return ended
        now, _, started, drawn = heapq.heappop(running)
        proposer.ended(drawn)
        ended.append(Ended(drawn, started, now))
