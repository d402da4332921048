"""What a finished study shows, for its page: the verdict, the arms with their intervals, the model to ship."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from services.api.errors import RequestError
from services.api.state import Service
from services.api.study_files import located
from services.files.remote import ArtifactError
from services.files.study_dir import Folder
from services.store import QueueRow

if TYPE_CHECKING:
    from services.analysis.comparison import ArmResult, ComparisonDocument

_MARGIN = 0.05  # of the width of the drawing, on both sides
_SMALLEST_SPAN = 0.01  # of accuracies: arms that are equal are not to be drawn far apart


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its 95% interval, in [0, 1], and where they are drawn, in [0, 1] of the width.

    Args:
        mean: The mean.
        low: Lower end, or None where the seeds give no interval.
        high: Upper end, or None.
        seeds: Number of seeds.
        at: Where the mean is drawn.
        span: Where the ends are drawn, or None.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    at: float
    span: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class ArmLine:
    """An arm of a finished study.

    Args:
        name: Its name.
        description: In the words of the study.
        role: What it is for.
        ships: Whether its model is the one to ship.
        test: Test accuracy, or None without a retrained model.
        macs: Of its exported model, or None.
        parameters: Of its exported model, or None.
        sample_passes: What it has cost.
        seconds: What it has cost.
    """

    name: str
    description: str
    role: str
    ships: bool
    test: Interval | None
    macs: int | None
    parameters: int | None
    sample_passes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What a study shows.

    Args:
        answer: ``yes``, ``no`` or ``not shown``.
        headline: The answer with its reason, without a full stop.
        numbers: What it rests on.
        shipping: Which model to ship, in a few words.
        ship_rows: Label and text of what is known of it.
        arms: The arms, best first if they are ranked.
        ranked: Whether they are.
        low: Accuracy at the left end of the drawing.
        high: Accuracy at its right end.
    """

    answer: str
    headline: str
    numbers: tuple[str, ...]
    shipping: str
    ship_rows: tuple[tuple[str, str], ...]
    arms: tuple[ArmLine, ...]
    ranked: bool
    low: float
    high: float


def findings_of(shared: Service, row: QueueRow) -> Findings | None:
    """Return what a study shows, or None while it has no comparison, and of one that this release cannot read."""
    try:
        path, held = located(shared, row, Folder(shared.settings.folder(row.study)).comparison, "comparison")
    except (RequestError, ArtifactError):  # the page has more to show than this
        return None
    with held:
        try:
            version = path.stat()
            return _read(path, (version.st_ino, version.st_size, version.st_mtime_ns))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):  # damaged, or of a later release
            return None


@lru_cache(maxsize=256)
def _read(path: Path, version: tuple[int, ...]) -> Findings:
    from services.analysis.comparison import ComparisonDocument  # of which a service that only queues needs nothing
    from services.analysis.verdict import ship_heading, ship_rows, verdict_of

    document = ComparisonDocument.read(path)
    verdict = verdict_of(document)
    low, high = _range(document.arms)
    shipped = None if document.shipped is None else document.shipped.arm
    return Findings(
        answer=verdict.answer,
        headline=verdict.headline,
        numbers=verdict.numbers,
        shipping=ship_heading(document),
        ship_rows=tuple(ship_rows(document)),
        arms=tuple(_line(name, document.arms[name], name == shipped, low, high) for name in _order(document)),
        ranked=document.ranking is not None,
        low=low,
        high=high,
    )


def _order(document: "ComparisonDocument") -> Iterable[str]:
    return document.ranking or document.arms


def _range(arms: Mapping[str, "ArmResult"]) -> tuple[float, float]:
    """Return the accuracies at the ends of the drawing: those of all arms and intervals, with some room."""
    found = [arm.test_accuracy for arm in arms.values() if arm.test_accuracy is not None]
    ends = [value for each in found for value in (each.mean, *(each.ci95 or ()))]
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    if high - low < _SMALLEST_SPAN:
        low, high = (low + high - _SMALLEST_SPAN) / 2, (low + high + _SMALLEST_SPAN) / 2
    return low, high


def _line(name: str, arm: "ArmResult", ships: bool, low: float, high: float) -> ArmLine:
    def place(value: float) -> float:
        return _MARGIN + (1 - 2 * _MARGIN) * (value - low) / (high - low)

    test, accuracy = None, arm.test_accuracy
    if accuracy is not None:
        ends = accuracy.ci95
        span = None if ends is None else (place(ends[0]), place(ends[1]))
        low_end, high_end = (None, None) if ends is None else ends
        test = Interval(accuracy.mean, low_end, high_end, len(accuracy.per_seed), place(accuracy.mean), span)
    return ArmLine(
        name,
        arm.description,
        arm.role,
        ships,
        test,
        arm.macs,
        arm.parameters,
        arm.cost.sample_passes,
        arm.cost.seconds,
    )
