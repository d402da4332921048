"""Warm starts: the best trials of an earlier study are tried first, as points that were recorded when a study began.

What an earlier study says is read once, by whoever resolves the study in the context of `recalling`; the points then
stand in the resolved study, which no longer depends on the earlier one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from nas_blockout.serialization import count_of
from nas_blockout.settings_fields import Conflict
from search_spaces import Context, Point, Recorded, Space

_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class WarmStart(BaseModel):
    """The best trials of an earlier study, which are tried before the search proposes any."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    study: str = Field(pattern=_NAME, description="An earlier study of the same home, or of the same owner.")
    arm: str | None = Field(None, pattern=_NAME, description="One of its arms; all of them if left out.")
    best: int = Field(
        5, ge=1, le=1000, description="How many of its best complete search trials, by its metric on validation images."
    )


@dataclass(frozen=True, slots=True)
class Recalled:
    """A trial of an earlier study.

    Args:
        arm: Its arm.
        trial: Its number among the search trials of this arm.
        score: Its metric on validation images, in [0, 1].
        values: Its parameters by name.
    """

    arm: str
    trial: int
    score: float
    values: Point


@dataclass(frozen=True, slots=True)
class Beginning:
    """What an arm begins with, resolved.

    Args:
        wanted: What the study file says.
        trials: The trials, the best one first.
    """

    wanted: WarmStart
    trials: tuple[Recalled, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        trials = [{**asdict(each), "values": dict(each.values)} for each in self.trials]
        return {**self.wanted.model_dump(), "trials": trials}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read it back from the result of `to_json`."""
        wanted = {key: value for key, value in document.items() if key != "trials"}
        return cls(WarmStart.model_validate(wanted), tuple(Recalled(**each) for each in document["trials"]))

    def fitting(self, space: Space, context: Context) -> tuple[list[Recalled], list[str]]:
        """Return the trials that a space has, and of each other one a sentence that says why it is skipped.

        Args:
            space: The spaces of the arm, composed.
            context: What they start from.
        """
        fitting, skipped = [], []
        for each in self.trials:
            if (why := _misfit(each.values, space, context)) is None:
                fitting.append(each)
            else:
                place = f"trial {each.trial} of arm {each.arm!r} of study {self.wanted.study!r}"
                skipped.append(f"warm_start: {place} is skipped, its point is not in the spaces of this arm: {why}")
        return fitting, skipped

    def conflicts(self, space: Space, context: Context) -> Iterator[Conflict]:
        """Yield that no trial is in a space.

        Args:
            space: The spaces of the arm, composed.
            context: What they start from.
        """
        fitting, skipped = self.fitting(space, context)
        if not fitting and skipped:
            message = (
                f"warm_start: none of the {count_of(len(skipped), 'trial')} of study {self.wanted.study!r} is in the "
                f"spaces of this arm; the first: {skipped[0].rpartition('this arm: ')[2]}"
            )
            yield Conflict(message, "warm_start", "space")


# Returns the trials for an arm of a study: `recall(study, arm, wanted)`. It raises a Conflict where there are none.
Recall = Callable[[str, str, WarmStart], Sequence[Recalled]]
_RECALL: ContextVar[Recall | None] = ContextVar("recalled_trials", default=None)


@contextmanager
def recalling(recall: Recall) -> Iterator[None]:
    """Read trials of earlier studies in this context, for studies that are resolved in it.

    Args:
        recall: Returns the trials, or raises a `Conflict` whose keys are those of ``warm_start``.
    """
    token = _RECALL.set(recall)
    try:
        yield
    finally:
        _RECALL.reset(token)


def beginning_of(study: str, arm: str, wanted: WarmStart) -> Beginning:
    """Return what an arm begins with, read now.

    Args:
        study: Name of the study that is resolved.
        arm: Name of the arm.
        wanted: What the study file says.

    Raises:
        Conflict: There is no such study, it has no such trial, or earlier studies are not at hand here.
    """
    recall = _RECALL.get()
    if recall is None:
        raise Conflict("warm_start: earlier studies are not at hand here, only where the study is run", "warm_start")
    return Beginning(wanted, tuple(recall(study, arm, wanted)))


def _misfit(point: Point, space: Space, context: Context) -> str | None:
    recorded = Recorded(point)
    try:
        space(recorded, context)
    except ValueError as error:
        return str(error).replace("was not recorded", "is missing").replace("the recorded ", "")
    unknown = sorted(point.keys() - recorded.asked)
    return f"the spaces ask for no parameter {unknown[0]!r} with these values" if unknown else None
