"""Which trial comes next: the plan over the arms of a study.

The plan keeps no state of its own that the store could not give back: a search is rebuilt in memory from the trials
told so far each time it is asked, with the sampler's seed derived from the number of the trial. So a search that was
interrupted proposes what an uninterrupted one would have proposed.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from nas_blockout.experiment import Experiment, matched
from search_spaces import SPACES, Context, Point, Space, compose, grid
from services.budget.limits import Charge, trials_left
from services.search.asha import reason_to_stop
from services.search.constraints import exceeded_after
from services.search.proposals import Search, tried
from services.search.selection import chosen_of
from services.search.trial_state import RETRAIN, SEARCH, TERMINAL, Entry, Proposal
from services.study_config.schema import Arm, Study

MOST_FAILURES_IN_A_ROW = 8


class Plan:
    """Decides, from the trials of a study so far, which one comes next.

    Args:
        study: The resolved study.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
        entries: All trials so far.
    """

    def __init__(
        self, study: Study, *, shape: tuple[int, int, int], classes: int, images: int, entries: Iterable[Entry] = ()
    ) -> None:
        self.study = study
        self.shape = shape
        self.classes = classes
        self.images = images
        self._entries: dict[tuple[str, str], dict[int, Entry]] = defaultdict(dict)
        self._spaces: dict[str, Space] = {
            name: compose([SPACES[space] for space in arm.spaces]) for name, arm in study.arms.items()
        }
        self._grids: dict[str, Sequence[Point]] = {}
        for entry in entries:
            self.update(entry)

    def update(self, entry: Entry) -> None:
        """Take note of a trial's new state."""
        self._entries[entry.arm, entry.phase][entry.number] = entry

    def of(self, arm: str, phase: str) -> list[Entry]:
        """Return the trials of an arm and phase in the order of their numbers."""
        return [entry for _, entry in sorted(self._entries[arm, phase].items())]

    @property
    def finished(self) -> bool:
        """Whether every trial has ended and no arm will propose another."""
        if any(entry.state not in TERMINAL for trials in self._entries.values() for entry in trials.values()):
            return False
        return not any(self._can_search(arm) or self._retrain_waits(arm) for arm in self.study.arms.values())

    def next(self) -> Proposal | None:
        """Return the next trial, or None while every arm waits for a result or has ended."""
        for arm in self._in_turn():
            if self._can_search(arm) and (target := self._target(arm, None)) is not False:
                return self._propose(arm, target)
            if (proposal := self._retraining(arm)) is not None:
                return proposal
        return None

    def winner(self, arm: str) -> Entry | None:
        """Return the complete search trial to retrain, or None if there is none within the constraints.

        It has the best validation accuracy (of equals the first), or the least of what the study prefers among those
        that are almost as accurate.
        """
        rules = self.study.arms[arm].rules
        complete = [
            entry
            for entry in self.of(arm, SEARCH)
            if entry.state == "complete" and entry.score is not None and not exceeded_after(entry, rules.constraints)
        ]
        return chosen_of(complete, rules.selection)

    def reason_to_stop(self, entry: Entry, *, since: int) -> tuple[int, str] | None:
        """Return the rung at which a trial is to be stopped early and why, or None if it goes on.

        Args:
            entry: The trial, with its curve so far.
            since: Epochs that had been recorded before.
        """
        pruner = self.study.arms[entry.arm].rules.pruner
        if pruner is None or entry.phase != SEARCH:
            return None
        return reason_to_stop(entry, self.of(entry.arm, SEARCH), pruner, since=since)

    def cost(self, experiment: Experiment) -> int:
        """Return the sample passes of one full training."""
        return experiment.training.epochs * self.images

    def searches_left(self, arm: Arm) -> int:
        """Return how many more full search trials the arm's budget pays for."""
        search = [Charge(e.state in TERMINAL, e.planned, e.spent, e.seconds) for e in self.of(arm.name, SEARCH)]
        seeds = len(self.study.config.retrain.seeds)
        left = trials_left(self.study.config.budget, search, cost=self.cost(arm.experiment), retrainings=seeds)
        return min(left.values())

    def _in_turn(self) -> list[Arm]:
        """Arms that others wait for come first, then whoever has spent least, so that the arms take turns."""
        awaited = {arm.match for arm in self.study.arms.values()}
        arms = list(self.study.arms.values())
        spent = {arm.name: self._committed(arm.name, SEARCH) + self._committed(arm.name, RETRAIN) for arm in arms}
        return sorted(arms, key=lambda arm: (arm.name not in awaited, spent[arm.name]))

    def _committed(self, arm: str, phase: str) -> int:
        """Sample passes spent by ended trials and planned by the others."""
        entries = self.of(arm, phase)
        return sum(entry.spent if entry.state in TERMINAL else entry.planned for entry in entries)

    def _can_search(self, arm: Arm) -> bool:
        if any(entry.state == "queued" for entry in self.of(arm.name, SEARCH)):
            return False
        return self.searches_left(arm) > 0 and not self._gave_up(arm) and not self._orphaned(arm)

    def _gave_up(self, arm: Arm) -> bool:
        """Whether nothing but failures came, no network within the constraints was found, or a grid is exhausted."""
        entries = self.of(arm.name, SEARCH)
        last = [entry.state for entry in entries][-MOST_FAILURES_IN_A_ROW:]
        if len(last) == MOST_FAILURES_IN_A_ROW and set(last) == {"failed"}:
            return True
        exhausted = arm.searcher == "grid" and tried(entries) >= len(self._points(arm))
        return exhausted or any(entry.search_exhausted for entry in entries)

    def _orphaned(self, arm: Arm) -> bool:
        """Whether the arm whose cost must be matched ended without a winner."""
        return arm.match is not None and self._search_ended(arm.match) and self.winner(arm.match) is None

    def _search_ended(self, name: str) -> bool:
        running = any(entry.state not in TERMINAL for entry in self.of(name, SEARCH))
        return not running and not self._can_search(self.study.arms[name])

    def _target(self, arm: Arm, seed: int | None) -> int | Literal[False] | None:
        """Return the MACs to match, None if there is nothing to match, or False while they are not known yet."""
        if arm.match is None:
            return None
        if not self._search_ended(arm.match):
            return False
        winner = self.winner(arm.match)
        assert winner is not None, "an arm without anything to match proposes nothing"
        if seed is None:
            return winner.macs
        retrained = self.current(self.study.arms[arm.match]).get(seed)
        if retrained is None or retrained.state not in TERMINAL:
            return False
        return retrained.macs or winner.macs

    def _matched(self, experiment: Experiment, target: int | None) -> Experiment:
        """Return the experiment made to end in a network of the MACs to match, if there are any."""
        return experiment if target is None else matched(experiment, target, shape=self.shape, classes=self.classes)

    def _retrain_waits(self, arm: Arm) -> bool:
        if self._orphaned(arm) or self.winner(arm.name) is None:
            return False
        return self._missing_seed(arm) is not None

    def current(self, arm: Arm) -> dict[int, Entry]:
        """Return by seed the retrainings of the arm's present winner; what an earlier winner had stands no more."""
        winner = self.winner(arm.name)
        if winner is None or self._orphaned(arm):
            return {}
        latest = {entry.seed: entry for entry in self.of(arm.name, RETRAIN)}
        return {seed: entry for seed, entry in latest.items() if entry.experiment == self._again(arm, winner, seed)}

    def _again(self, arm: Arm, winner: Entry, seed: int) -> Experiment | None:
        """Return what retrains a winner with a seed, or None while the MACs to match are not known."""
        target = self._target(arm, seed)
        return None if target is False else self._matched(replace(winner.experiment, seed=seed), target)

    def _missing_seed(self, arm: Arm) -> int | None:
        current = self.current(arm)
        return next((seed for seed in self.study.config.retrain.seeds if seed not in current), None)

    def _retraining(self, arm: Arm) -> Proposal | None:
        if not self._search_ended(arm.name) or not self._retrain_waits(arm):
            return None
        number, seed, winner = len(self.of(arm.name, RETRAIN)), self._missing_seed(arm), self.winner(arm.name)
        if winner is None or seed is None or (experiment := self._again(arm, winner, seed)) is None:
            return None
        entry = Entry(arm.name, RETRAIN, number, seed, "queued", self.cost(experiment), experiment)
        return Proposal(replace(entry, architecture_hash=winner.architecture_hash), None, 0.0)

    def _propose(self, arm: Arm, target: int | None) -> Proposal:
        began = time.perf_counter()
        completed = self.of(arm.name, SEARCH)
        found = Search(
            arm,
            self._spaces[arm.name],
            Context(arm.experiment, self.shape, self.classes),
            completed,
            self.study.config.seed,
            finish=lambda experiment: self._matched(experiment, target),
            points=self._points(arm),
        ).draft()
        name = found.architecture_hash
        replicate = next((e.number for e in completed if e.architecture_hash == name), None) if name else None
        entry = Entry(
            arm.name,
            SEARCH,
            len(completed),
            found.experiment.seed,
            "queued",
            0 if "search_exhausted" in found.parameters else self.cost(found.experiment),
            found.experiment,
            parameters=found.parameters,
            architecture_hash=name,
        )
        return Proposal(entry, replicate, time.perf_counter() - began)

    def _points(self, arm: Arm) -> Sequence[Point]:
        """Return the grid of an arm, nothing for one that is not searched on a grid."""
        if arm.searcher != "grid":
            return ()
        if arm.name not in self._grids:
            context = Context(arm.experiment, self.shape, self.classes)
            self._grids[arm.name] = grid(self._spaces[arm.name], context, points=arm.rules.grid_points)
        return self._grids[arm.name]
