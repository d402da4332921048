"""What one arm tries next: asked of its searcher until it is new and within the constraints, or found nowhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from nas_blockout.experiment import Experiment
from search_spaces import Context, Point, Space, Trial
from services.search.constraints import exceeded_before, in_words
from services.search.samplers import ask, chosen, fixed
from services.search.trial_state import Entry, derived_seed
from services.study_config.schema import Arm

FRESH_ASKS = 16
MOST_ASKS = 100
# How often a searcher is asked before chance helps it out of what is known or refused. What was not trained teaches a
# Gaussian process nothing: asked again, it says much the same, and takes a second for it.
_PATIENCE = {"random": MOST_ASKS, "tpe": FRESH_ASKS, "gp": 2}


@dataclass(frozen=True, slots=True)
class Draft:
    """What was found.

    Args:
        experiment: What to run, or, where nothing was found, what was refused last.
        parameters: As in `Entry`.
    """

    experiment: Experiment
    parameters: Mapping[str, Any]

    @property
    def architecture_hash(self) -> str | None:
        """Canonical hash of the proposed architecture, or None."""
        return self.experiment.architecture.hash if self.experiment.architecture else None


@dataclass(slots=True)
class Search:
    """The next proposal of an arm.

    Args:
        arm: The arm.
        space: Its spaces, composed.
        context: What they start from.
        completed: Its search trials so far, in the order of their numbers.
        seed: Of the study.
        finish: Makes of what a space gives the experiment that would be run.
        points: The grid, of an arm that is searched on one.
    """

    arm: Arm
    space: Space
    context: Context
    completed: Sequence[Entry]
    seed: int
    finish: Callable[[Experiment], Experiment]
    points: Sequence[Point] = ()
    _infeasible: list[Mapping[str, Any]] = field(default_factory=list, init=False)

    def draft(self) -> Draft:
        """Return the first proposal that may be trained and has an architecture that is new to the arm.

        An architecture that is known is asked again 15 times and then accepted: it is a replicate. What exceeds a
        constraint is refused, told to the searcher, and asked again until there have been 100 proposals.
        """
        known = {entry.architecture_hash for entry in self.completed if entry.architecture_hash}
        repeats, draft = 0, None
        for attempt in range(MOST_ASKS):
            asked = self._ask(attempt)
            if asked is None:
                break
            draft = self._drafted(asked)
            exceeded = exceeded_before(
                draft.experiment, self.arm.rules.constraints, shape=self.context.shape, classes=self.context.classes
            )
            if exceeded:
                self._infeasible.append(
                    {**draft.parameters, "exceeded": {name: list(e) for name, e in exceeded.items()}}
                )
                continue
            repeats += 1
            if self.points or draft.architecture_hash not in known or repeats == FRESH_ASKS:
                return self._accepted(draft)
        assert draft is not None, "a search that has nothing left to propose is not asked"
        return self._given_up(draft)

    def _ask(self, attempt: int) -> Any:
        if self.points:
            place = tried(self.completed) + len(self._infeasible)
            order = shuffled(len(self.points), self.seed)
            return fixed(self.points[order[place]]) if place < len(order) else None
        searcher = self.arm.searcher if attempt < _PATIENCE[self.arm.searcher] else "random"
        seed = derived_seed(self.seed, len(self.completed), attempt)
        return ask(searcher, self.completed, seed, rules=self.arm.rules, infeasible=self._infeasible)

    def _drafted(self, trial: Any) -> Draft:
        experiment = self.space(cast(Trial, trial), self.context)
        experiment = replace(experiment, seed=derived_seed(self.seed, len(self.completed), FRESH_ASKS))
        return Draft(self.finish(experiment), chosen(trial))

    def _accepted(self, draft: Draft) -> Draft:
        return (
            replace(draft, parameters={**draft.parameters, "infeasible": self._infeasible})
            if self._infeasible
            else draft
        )

    def _given_up(self, draft: Draft) -> Draft:
        least = min(self._infeasible, key=lambda each: sum(found / limit for found, limit in each["exceeded"].values()))
        reason = (
            f"no network within the constraints among {len(self._infeasible)} proposals; the nearest: "
            f"{in_words(least['exceeded'])}"
        )
        return replace(draft, parameters={"infeasible": self._infeasible, "search_exhausted": reason})


def tried(completed: Sequence[Entry]) -> int:
    """Return how many points of a grid have been proposed, those that were refused among them."""
    return sum(len(entry.infeasible) + (entry.search_exhausted is None) for entry in completed)


def shuffled(count: int, seed: int) -> list[int]:
    """Return the order in which the points of a grid are tried: if the budget ends early, all sides have been seen."""
    return sorted(range(count), key=lambda place: derived_seed(seed, count, place))
