"""What one arm tries next: its sampler is asked until a proposal is new and within the constraints, or none is left."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import search_spaces
from nas_blockout.experiment import Experiment
from search_spaces import Context, Point, Space
from services.search.arm_trials import ArmTrials
from services.search.constraints import describe_exceeded, exceeded_before
from services.search.samplers import Asked, ask, fixed, suggested
from services.study_config.resolved_study import Arm
from services.trial_record import Infeasible, Params

REPEATED_ASKS = 16
MOST_ASKS = 100
# Asks before random sampling takes over. A proposal that was never trained teaches a Gaussian process nothing: asked
# again, it proposes much the same point, after a second of fitting.
_PATIENCE = {"random": MOST_ASKS, "gp": 2}  # any other: as often as a known architecture is asked for again


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration to train.

    Args:
        experiment: What to run; where the search is exhausted, the last proposal, which is not run.
        params: What the search chose and what it rejected before, or why it is exhausted.
        architecture_hash: Canonical hash of the proposed architecture, or None.
    """

    experiment: Experiment
    params: Params
    architecture_hash: str | None


@dataclass(slots=True)
class ProposalSearch:
    """One search for the next proposal of an arm.

    Args:
        arm: The arm.
        space: Its spaces, composed.
        context: What they start from.
        trials: Its search trials so far.
        seed: Of the study.
        finish: Turns the experiment that a space returns into the one that is run.
        points: The grid, of an arm that is searched on one.
        first: Points that are tried before the search proposes any.
    """

    arm: Arm
    space: Space
    context: Context
    trials: ArmTrials
    seed: int
    finish: Callable[[Experiment], Experiment]
    points: Sequence[Point] = ()
    first: Sequence[Point] = ()
    _infeasible: list[Infeasible] = field(default_factory=list, init=False)

    def propose(self) -> Proposal:
        """Return the first proposal that is within the constraints and whose architecture is new to the arm.

        A known architecture is asked for again 15 times and then accepted as a replicate. A proposal that exceeds a
        constraint is reported to the sampler as infeasible, and the search is exhausted after 100 of them.
        """
        constraints = self.arm.rules.constraints
        repeats, last = 0, None
        for attempt in range(MOST_ASKS):
            enqueued = self._enqueued()
            asked = fixed(enqueued) if enqueued is not None else self._ask(attempt)
            if asked is None:
                break
            experiment = self.space(cast(search_spaces.Trial, asked), self.context)
            # The seed depends on the number of the trial, not on the attempt: rejected proposals change no training.
            experiment = replace(experiment, seed=derived_seed(self.seed, len(self.trials), REPEATED_ASKS))
            experiment, params = self.finish(experiment), suggested(asked)
            shape, classes = self.context.shape, self.context.classes
            exceeded = exceeded_before(experiment, constraints, shape=shape, classes=classes)
            last = experiment
            if exceeded:
                self._infeasible.append(Infeasible(params.values, params.distributions, exceeded))
                continue
            repeats, name = repeats + 1, _hash_of(experiment)
            # Points of a grid, and enqueued ones, may share an architecture, and are tried all the same; without one, a
            # proposal is new.
            known = self.trials.same(name) and not self.points and enqueued is None
            if not known or repeats == REPEATED_ASKS:
                params = replace(params, infeasible=tuple(self._infeasible), enqueued=enqueued is not None)
                return Proposal(experiment, params, name)
        assert last is not None, "an arm whose search is exhausted is not asked again"
        return self._exhausted(last)

    def _enqueued(self) -> Point | None:
        """Return the next of the points that are tried before the search, or None if all have been."""
        place = self.trials.tried + len(self._infeasible)
        return self.first[place] if place < len(self.first) else None

    def _ask(self, attempt: int) -> Asked | None:
        """Return an Optuna trial that suggests parameters, or None if the grid has no point left."""
        if self.points:
            # Infeasible points of earlier trials count as tried: each point is proposed once, whatever became of it.
            place = self.trials.tried + len(self._infeasible)
            order = shuffled(len(self.points), self.seed)
            return fixed(self.points[order[place]]) if place < len(order) else None
        number, searcher = len(self.trials), self.arm.searcher
        if attempt >= _PATIENCE.get(searcher, REPEATED_ASKS):
            searcher = "random"
        return ask(
            searcher,
            self.trials.told_to(searcher, number),
            derived_seed(self.seed, number, attempt),
            infeasible=self._infeasible,
            study_seed=self.seed,
            attempt=attempt,
        )

    def _exhausted(self, last: Experiment) -> Proposal:
        # The ratios of all exceeded limits, summed: which of them is in the way is for the user to decide.
        nearest = min(
            self._infeasible, key=lambda proposal: sum(value / limit for value, limit in proposal.exceeded.values())
        )
        reason = (
            f"no network within the constraints among {len(self._infeasible)} proposals; the nearest: "
            f"{describe_exceeded(nearest.exceeded)}"
        )
        params = Params(infeasible=tuple(self._infeasible), search_exhausted=reason)
        return Proposal(last, params, _hash_of(last))


def _hash_of(experiment: Experiment) -> str | None:
    return experiment.architecture.hash if experiment.architecture else None


def shuffled(count: int, seed: int) -> list[int]:
    """Return a random order of the points of a grid, so that a budget that ends early has sampled the whole grid."""
    return sorted(range(count), key=lambda place: derived_seed(seed, count, place))


def derived_seed(*parts: int) -> int:
    """Return a seed in ``[0, 2**31)`` that depends on all parts and on nothing else."""
    # Not `hash`, which differs between processes, nor sums, by which seeds of neighboring trials would coincide.
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
