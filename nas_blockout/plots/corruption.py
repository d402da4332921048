"""The figure of errors on corrupted images."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import NARROW, padded, percent_axis, small_multiples, title
from nas_blockout.plots.style.theme import GRID, MUTED, PAPER, SMALL, style_of, styled


@dataclass(frozen=True, slots=True)
class Corrupted:
    """Errors of an arm, in [0, 1].

    Args:
        name: Name of the arm.
        role: Role of the arm.
        clean: Error on images without corruption.
        errors: Pairs of severity and error, by increasing severity.
    """

    name: str
    role: str
    clean: float
    errors: tuple[tuple[int, float], ...]

    @property
    def line(self) -> list[tuple[float, float]]:
        """Points of the curve; the error on clean images is at severity 0."""
        return [(0.0, self.clean), *((float(severity), error) for severity, error in self.errors)]


@styled
def figure_corruption(arms: Sequence[Corrupted]) -> Figure:
    """Draw one panel per arm: its error against severity, with the curves of the other arms in gray behind it."""
    figure, panels = small_multiples(len(arms), height=86)
    values = [value for arm in arms for _, value in arm.line]
    for axes, arm in zip(panels, arms, strict=True):
        others = [other.line for other in arms if other is not arm]
        # Limits are those of all arms, set below, so that panels can be compared.
        axes.add_collection(LineCollection(others, colors=GRID, linewidths=1), autolim=False)
        style = style_of(arm.role)
        axes.plot(*zip(*arm.line, strict=True), color=style.color, lw=1.7)
        axes.plot([severity for severity, _ in arm.errors], [e for _, e in arm.errors], style.marker, ms=3.5,
                  mec="none", mfc=style.color)  # fmt: skip
        axes.plot([0], [arm.clean], style.marker, ms=4, mec=style.color, mfc=PAPER)
        axes.set_xlim(-0.3, max(severity for other in arms for severity, _ in other.errors) + 0.3)
        axes.set_ylim(*padded(values))
        axes.set_xticks(range(int(axes.get_xlim()[1]) + 1))
        percent_axis(axes, ticks=4)
        title(axes, arm.name)
    if panels:
        height = float(figure.get_size_inches()[1]) * 72  # in points: the label is 3 points above the lower edge
        figure.supxlabel("severity (0: no corruption)", size=SMALL, color=MUTED, y=3 / height, va="bottom")
        figure.supylabel("error (%)", size=SMALL, color=MUTED, x=1 / NARROW, ha="left")
    return figure
