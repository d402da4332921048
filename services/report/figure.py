"""A figure of a report together with its caption, or the sentence in place of one that would have nothing to show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_blockout import plots
from services.analysis.comparison import ArmResult
from services.report.view import ReportView
from services.trial_record import Trial

FLAT = 0.05  # probabilities that differ by less tell nothing apart
PREFERS = 0.5  # a node whose probabilities differ by less over the clusters is in all of them or in none
FEW = 0.01  # of the nodes


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what its caption says.

    Args:
        name: Identifier of the figure in the page and in the names of files.
        title: What it shows, in a few words.
        caption: How to read it.
        n: Sample size, such as ``n = 5 seeds per arm``.
        data: Where its numbers can be found.
        figure: The figure itself.
        arm: The arm it shows, or None for a figure of several arms.
    """

    name: str
    title: str
    caption: str
    n: str
    data: str
    figure: plots.Figure
    arm: str | None = None

    @property
    def is_wide(self) -> bool:
        """Whether it needs the full width of a page."""
        # Narrower figures stand two in a row; 72 points an inch, as in the SVG.
        return float(self.figure.get_size_inches()[0]) * 72 > 400

    @property
    def file(self) -> str:
        """File name without an ending, the same whichever other figures there are: ``masks-blockout``."""
        arm = re.sub(r"[^a-z0-9-]+", "-", (self.arm or "").lower()).strip("-")
        return f"{re.sub(r'-[0-9]+$', '', self.name)}{'-' if arm else ''}{arm}"

    @property
    def description(self) -> str:
        """The text alternative of the figure as a file, where no caption stands below it."""
        return f"{self.title}. {self.caption} {self.n}." + (f" Arm {self.arm}." if self.arm else "")

    def svg(self) -> str:
        """Return the figure as an element of a page, whose caption says the rest."""
        arm = f", {self.arm}" if self.arm else ""
        return plots.to_svg(self.figure, name=self.name, description=f"{self.title}{arm}. {self.n}.")

    def pdf(self) -> bytes:
        """Return the figure as a PDF."""
        return plots.to_pdf(self.figure)


@dataclass(frozen=True, slots=True)
class Remark:
    """The sentence in place of a figure that would have nothing to show.

    Args:
        name: Identifier in the page.
        title: What the figure would have shown.
        text: Why it is not drawn.
        arm: The arm it would have shown, or None.
    """

    name: str
    title: str
    text: str
    arm: str | None = None


Shown = Picture | Remark


def exported_trial(view: ReportView, name: str, arm: ArmResult) -> Trial | None:
    """Return the retrained trial whose model the arm exports."""
    return next((trial for trial in view.models(name) if trial.seed == arm.exported_seed), None)


def counted(counts: Sequence[int], noun: str, plural: str = "") -> str:
    """Return a count or a range of counts as text: ``n = 5 seeds`` or ``n = 3 to 5 seeds``."""
    low, high = min(counts, default=0), max(counts, default=0)
    amount = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"n = {amount} {noun if high == 1 else plural or f'{noun}s'}"


def spread(rows: Sequence[Sequence[float]]) -> float:
    """Return the largest difference between two rows in one of their columns; 0 without rows."""
    return max((max(column) - min(column) for column in zip(*rows, strict=True)), default=0.0)


def without_preference(
    name: str, title: str, arm: str, probabilities: Mapping[str, Sequence[Sequence[float]]]
) -> Remark | None:
    """Return what is said in place of a figure of branches, if hardly any node prefers one cluster to another.

    Such nodes are kept or dropped as a whole: neither masks nor projections have anything that could be a branch.

    Args:
        name: Identifier of the figure.
        title: What it would have shown.
        arm: The arm it would have shown.
        probabilities: P by layer, (nodes, clusters).
    """
    preferences = [max(row) - min(row) for p in probabilities.values() for row in p]
    if sum(preference >= PREFERS for preference in preferences) > FEW * len(preferences):
        return None
    if all(len(row) == 1 for p in probabilities.values() for row in p):
        return Remark(name, title, "There is one cluster, so there are no branches to show.", arm)
    average = sum(preferences) / len(preferences)
    text = (
        f"Hardly any node prefers one cluster to another: of {len(preferences):,} nodes, the probabilities of a node "
        f"differ by {average:.3f} on average and {max(preferences):.3f} at most. Nodes are kept or dropped as a whole, "
        "so there are no branches to show."
    )
    return Remark(name, title, text, arm)


def flat_classes(number: int, name: str, expected: Sequence[Sequence[float]], clusters: int) -> Remark | None:
    """Return what is said in place of the clusters of each class, if all classes are expected to have as many."""
    low, high = _ends(expected)
    if high - low >= FLAT:
        return None
    return Remark(
        f"classes-{number}",
        "Expected clusters of each class",
        f"Every class is expected to belong to the same number of clusters, {low:.4f} to {high:.4f} of {clusters}, in "
        f"{len(expected)} seed{'s' * (len(expected) > 1)}: no class has a branch of its own.",
        name,
    )


def flat_front(
    arms: Mapping[str, ArmResult], known: Mapping[str, float], name: str, title: str, label: str
) -> Remark | None:
    """Return what is said in place of a front, if there are not two arms of different cost to draw."""
    drawn = {arm: cost for arm, cost in known.items() if arms[arm].test_accuracy is not None}
    if len(set(drawn.values())) > 1 or not drawn:
        return None
    cost = next(iter(drawn.values()))
    which = f"All {len(drawn)} arms have" if len(drawn) > 1 else f"Only {next(iter(drawn))} has a known cost,"
    return Remark(name, title, f"{which} {cost:,.4g} {label}: there is no trade-off to draw.")


def _ends(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    values = [value for row in rows for value in row]
    return min(values), max(values)
