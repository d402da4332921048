"""Which trial comes next: a plan over the arms of a study, and Optuna for what to try. The sole importer of optuna.

The plan keeps no state of its own that the store could not give back: a search is rebuilt in memory from the trials
told so far each time it is asked, with the sampler's seed derived from the number of the trial. So a search that was
interrupted proposes what an uninterrupted one would have proposed.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from nas_blockout.experiment import Experiment
from search_spaces import SPACES, Context, Space, Trial, compose
from services.study_file import Arm, Study

SEARCH, RETRAIN = "search", "retrain"
TERMINAL = frozenset({"complete", "failed", "pruned"})
MOST_FAILURES_IN_A_ROW = 8
_FRESH_ASKS = 16
_TPE_STARTUP = 4

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class Entry:
    """A trial as the plan sees it.

    Args:
        arm: Name of the contestant.
        phase: ``search`` or ``retrain``.
        number: Position among the trials of the arm and phase, from 0.
        seed: Seed of its experiment.
        state: State in the store.
        planned: Sample passes that it is meant to cost.
        spent: Sample passes that it has cost so far.
        score: Validation accuracy, of a complete trial.
        macs: Multiply-accumulates an image of what it ended in.
        parameters: Values and distributions that the search chose.
        architecture_hash: Canonical hash of the architecture that was proposed, or None.
        experiment: What was run.
    """

    arm: str
    phase: str
    number: int
    seed: int
    state: str
    planned: int
    experiment: Experiment
    spent: int = 0
    score: float | None = None
    macs: int | None = None
    parameters: Mapping[str, Any] | None = None
    architecture_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial that should be run next.

    Args:
        entry: The trial, in state ``queued``.
        replicate_of: Number of the search trial of the same arm that had the same architecture, or None.
        thinking_seconds: What the optimiser itself took.
    """

    entry: Entry
    replicate_of: int | None
    thinking_seconds: float


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
        """Return the search trial with the best validation accuracy (of equals the first), or None if all failed."""
        complete = [entry for entry in self.of(arm, SEARCH) if entry.state == "complete" and entry.score is not None]
        return max(complete, key=lambda entry: (entry.score, -entry.number), default=None)

    def cost(self, experiment: Experiment) -> int:
        """Return the sample passes of one full training."""
        return experiment.training.epochs * self.images

    def searches_left(self, arm: Arm) -> int:
        """Return how many more full search trials the arm's budget pays for."""
        retraining = len(self.study.config.retrain.seeds) * self.cost(arm.experiment)
        left = self.study.config.budget.sample_passes - retraining - self._committed(arm.name, SEARCH)
        return max(0, left // self.cost(arm.experiment))

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
        last = [entry.state for entry in self.of(arm.name, SEARCH)][-MOST_FAILURES_IN_A_ROW:]
        return len(last) == MOST_FAILURES_IN_A_ROW and set(last) == {"failed"}

    def _orphaned(self, arm: Arm) -> bool:
        """Whether the arm whose cost must be matched ended without a winner."""
        return arm.match is not None and self._search_ended(arm.match) and self.winner(arm.match) is None

    def _search_ended(self, name: str) -> bool:
        running = any(entry.state not in TERMINAL for entry in self.of(name, SEARCH))
        return not running and not self._can_search(self.study.arms[name])

    def _target(self, arm: Arm, seed: int | None) -> int | bool | None:
        """Return the MACs to match, None if there is nothing to match, or False while they are not known yet."""
        if arm.match is None:
            return None
        if not self._search_ended(arm.match):
            return False
        winner = self.winner(arm.match)
        assert winner is not None, "an arm without anything to match proposes nothing"
        if seed is None:
            return winner.macs
        retrained = next((entry for entry in self.of(arm.match, RETRAIN) if entry.seed == seed), None)
        if retrained is None or retrained.state not in TERMINAL:
            return False
        return retrained.macs or winner.macs

    def _retrain_waits(self, arm: Arm) -> bool:
        if self._orphaned(arm) or self.winner(arm.name) is None:
            return False
        return len(self.of(arm.name, RETRAIN)) < len(self.study.config.retrain.seeds)

    def _retraining(self, arm: Arm) -> Proposal | None:
        if not self._search_ended(arm.name) or not self._retrain_waits(arm):
            return None
        number = len(self.of(arm.name, RETRAIN))
        seed = self.study.config.retrain.seeds[number]
        target = self._target(arm, seed)
        winner = self.winner(arm.name)
        if target is False or winner is None:
            return None
        experiment = replace(winner.experiment, seed=seed, target_macs=target)
        entry = Entry(arm.name, RETRAIN, number, seed, "queued", self.cost(experiment), experiment)
        return Proposal(replace(entry, architecture_hash=winner.architecture_hash), None, 0.0)

    def _propose(self, arm: Arm, target: int | bool | None) -> Proposal:
        began = time.perf_counter()
        told = self.of(arm.name, SEARCH)
        number = len(told)
        known = {entry.architecture_hash: entry.number for entry in reversed(told) if entry.architecture_hash}
        context = Context(arm.experiment, self.shape, self.classes)
        for attempt in range(_FRESH_ASKS):
            seed = derived_seed(self.study.config.seed, number, attempt)
            trial = ask(arm.searcher, told, seed)
            experiment = self._spaces[arm.name](cast(Trial, trial), context)
            hash_of = experiment.architecture.hash if experiment.architecture else None
            if hash_of not in known:
                break
        experiment = replace(
            experiment,
            seed=derived_seed(self.study.config.seed, number, _FRESH_ASKS),
            target_macs=target if isinstance(target, int) and target is not False else None,
        )
        parameters = {
            "values": dict(trial.params),
            "distributions": {name: distribution_to_json(value) for name, value in trial.distributions.items()},
        }
        planned = self.cost(experiment)
        entry = Entry(arm.name, SEARCH, number, experiment.seed, "queued", planned, experiment, parameters=parameters)
        replicate = known.get(hash_of) if hash_of else None
        return Proposal(replace(entry, architecture_hash=hash_of), replicate, time.perf_counter() - began)


def ask(searcher: str, told: Sequence[Entry], seed: int) -> optuna.Trial:
    """Return a fresh Optuna trial of a search that knows the trials told so far.

    Args:
        searcher: ``random`` or ``tpe``.
        told: Trials of the arm in the order of their numbers; complete ones are told with their score, failed ones as
            failed, and those that still run are left out.
        seed: Of the sampler.
    """
    study = optuna.create_study(direction="maximize", sampler=_sampler(searcher, seed))
    study.add_trials([_frozen(entry) for entry in told if entry.state in TERMINAL and entry.parameters is not None])
    return study.ask()


def derived_seed(*parts: int) -> int:
    """Return a seed in ``0..2**31-1`` that depends on all parts and on nothing else."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _sampler(searcher: str, seed: int) -> BaseSampler:
    if searcher == "tpe":
        return TPESampler(seed=seed, n_startup_trials=_TPE_STARTUP)
    return RandomSampler(seed=seed)


def _frozen(entry: Entry) -> optuna.trial.FrozenTrial:
    assert entry.parameters is not None
    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
    return create_trial(
        state=states[entry.state],
        value=entry.score if entry.state == "complete" else None,
        params=dict(entry.parameters["values"]),
        distributions={name: json_to_distribution(text) for name, text in entry.parameters["distributions"].items()},
    )
