"""Simulated workers: recorded trials run again in simulated time, asynchronously, in the order of their ends."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from services.replay.pool import Recorded, nearest
from services.search import SEARCH, Plan
from services.study_config.schema import Budget, Study

_WITHOUT_END = 1 << 62  # the pool ends a replay, not the budget


@dataclass(frozen=True, slots=True)
class Drawn:
    """A recorded trial that answers a proposal.

    Args:
        place: Of the trial in the pool.
        number: Of the proposal, from 0.
        distance: How far the trial lies from what was proposed, in 0..1; None if it was drawn and nothing proposed.
    """

    place: int
    number: int
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A recorded trial that was run again from `started` to `finished`, in simulated seconds."""

    drawn: Drawn
    started: float
    finished: float


class Proposer(Protocol):
    """Who says which recorded trial comes next."""

    def next(self) -> Drawn | None:
        """Return the next trial, or None if there is none left or none can be proposed now."""

    def ended(self, drawn: Drawn) -> None:
        """Take note that a trial has ended, and in what."""


class Shuffled:
    """Random search over the pool: every recorded trial once, in an order that the seed decides."""

    def __init__(self, pool: Sequence[Recorded], seed: int) -> None:
        self._order = np.random.default_rng(seed).permutation(len(pool)).tolist()
        self._number = 0

    def next(self) -> Drawn | None:
        """Return the next trial of the order."""
        if self._number == len(self._order):
            return None
        self._number += 1
        return Drawn(self._order[self._number - 1], self._number - 1)

    def ended(self, drawn: Drawn) -> None:
        """Take no note: random search learns nothing."""


class Asked:
    """A searcher, asked by the same plan that asks it in a study; the nearest recorded trial not yet run answers.

    The searcher is told of the trial that answered, with its own parameters, not of the one that it proposed.

    Args:
        study: With the one arm whose search is replayed, its searcher and seed.
        pool: What answers.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
    """

    def __init__(
        self, study: Study, pool: Sequence[Recorded], *, shape: tuple[int, int, int], classes: int, images: int
    ) -> None:
        (self._arm,) = study.arms
        self._pool = pool
        self._left = set(range(len(pool)))
        self._plan = Plan(study, shape=shape, classes=classes, images=images)

    def next(self) -> Drawn | None:
        """Return the recorded trial that answers the searcher's next proposal."""
        proposal = self._plan.next() if self._left else None
        if proposal is None or proposal.entry.phase != SEARCH:
            return None
        place, apart = nearest(proposal.entry.parameters, self._pool, sorted(self._left))
        self._left.remove(place)
        drawn = Drawn(place, proposal.entry.number, apart)
        self._tell(drawn, state="running")
        return drawn

    def ended(self, drawn: Drawn) -> None:
        """Tell the searcher what the trial really ended in."""
        self._tell(drawn, state=self._pool[drawn.place].entry.state)

    def _tell(self, drawn: Drawn, *, state: str) -> None:
        entry = self._pool[drawn.place].entry
        self._plan.update(replace(entry, arm=self._arm, number=drawn.number, state=state))


def alone(study: Study, arm: str, *, searcher: str, seed: int) -> Study:
    """Return a study of one arm's search only, without end, by another searcher and with another seed."""
    config = study.config.model_copy(update={"seed": seed, "budget": Budget(sample_passes=_WITHOUT_END)})
    return replace(study, config=config, arms={arm: replace(study.arms[arm], searcher=searcher, match=None)})


def simulate(pool: Sequence[Recorded], proposer: Proposer, workers: int) -> list[Ended]:
    """Run recorded trials in simulated time until there is nothing left to run; return them in the order of their ends.

    A worker that is free asks for the next trial at once, and is answered from the trials that have ended until then.
    Trials take the seconds they took when they were recorded; asking takes none.

    Args:
        pool: The recorded trials.
        proposer: Says which comes next.
        workers: Trials at once.
    """
    now, order = 0.0, 0
    running: list[tuple[float, int, float, Drawn]] = []
    ended: list[Ended] = []
    while True:
        while len(running) < workers and (drawn := proposer.next()) is not None:
            heapq.heappush(running, (now + pool[drawn.place].seconds, order, now, drawn))
            order += 1
        if not running:
            return ended
        now, _, started, drawn = heapq.heappop(running)
        proposer.ended(drawn)
        ended.append(Ended(drawn, started, now))
