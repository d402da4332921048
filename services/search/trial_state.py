"""Trials as the plan sees them, proposals, and the seeds that both get."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_blockout.experiment import Experiment

SEARCH, RETRAIN = "search", "retrain"
TERMINAL = frozenset({"complete", "failed", "pruned"})


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
        seconds: Measured seconds that it has cost once it has ended, proposing it and handing over included.
        score: Validation accuracy, of a complete trial.
        macs: Multiply-accumulates an image of what it ended in.
        parameters: ``values`` and ``distributions`` that the search chose; ``infeasible``, what it had proposed
            before and what of that exceeded which limit; ``search_exhausted``, why nothing is left to train.
        architecture_hash: Canonical hash of the architecture that was proposed, or None.
        experiment: What was run.
        parameter_count: Parameters of what it ended in.
        latency_ms: Milliseconds of a forward pass of one image of what it ended in, where that was measured.
        curve: Validation accuracy after every epoch so far, of a search whose trials may be stopped early.
        stopped: Epochs after which a pruned trial was stopped, and its validation accuracy there.
    """

    arm: str
    phase: str
    number: int
    seed: int
    state: str
    planned: int
    experiment: Experiment
    spent: int = 0
    seconds: float = 0.0
    score: float | None = None
    macs: int | None = None
    parameters: Mapping[str, Any] | None = None
    architecture_hash: str | None = None
    parameter_count: int | None = None
    latency_ms: float | None = None
    curve: tuple[float, ...] = ()
    stopped: tuple[int, float] | None = None

    @property
    def infeasible(self) -> Sequence[Mapping[str, Any]]:
        """What the search had proposed in its place and what was never trained."""
        found: Sequence[Mapping[str, Any]] = (self.parameters or {}).get("infeasible", ())
        return found

    @property
    def search_exhausted(self) -> str | None:
        """Why there is nothing to train, or None."""
        reason: str | None = (self.parameters or {}).get("search_exhausted")
        return reason

    def measured(self, quantity: str) -> float | None:
        """Return ``accuracy``, ``parameters``, ``macs`` or ``latency_ms`` of what the trial ended in, if known."""
        names = {"accuracy": "score", "parameters": "parameter_count"}
        value: float | None = getattr(self, names.get(quantity, quantity))
        return value


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial that should be run next.

    Args:
        entry: The trial, in state ``queued``.
        replicate_of: Number of the search trial of the same arm that had the same architecture, or None.
        suggest_seconds: What the optimizer itself took.
    """

    entry: Entry
    replicate_of: int | None
    suggest_seconds: float


def derived_seed(*parts: int) -> int:
    """Return a seed in ``0..2**31-1`` that depends on all parts and on nothing else."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
