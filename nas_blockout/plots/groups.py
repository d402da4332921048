"""The figure of agreement between groups of classes and known groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import NARROW, canvas, padded, panel, shorten
from nas_blockout.plots.style.theme import FONT, INK, MUTED, SMALL, style_of, styled

_ROW, _NAMES = 19.0, 126.0


@dataclass(frozen=True, slots=True)
class Agreed:
    """Agreement of an arm's groups of classes with a reference.

    Args:
        arm: Name of the arm.
        role: Role of the arm.
        reference: Name of the known groups.
        values: Adjusted mutual information, one value per seed.
        mean: Mean of the values.
        shuffled: Interval of the mean when classes are shuffled.
    """

    arm: str
    role: str
    reference: str
    values: tuple[float, ...]
    mean: float
    shuffled: tuple[float, float]


@styled
def figure_agreement(agreements: Sequence[Agreed]) -> Figure:
    """Draw one row per arm under each reference: mean, seeds, and the interval for shuffled classes as a band."""
    rows: list[Agreed | str] = []  # a string is a heading
    for reference, arms in groupby(agreements, key=lambda agreement: agreement.reference):
        rows += [reference, *arms]
    figure = canvas(NARROW, 6 + _ROW * len(rows) + 32)
    axes = panel(figure, (_NAMES, 6, NARROW - _NAMES - 34, _ROW * len(rows)))
    axes.axvline(0, color=MUTED, lw=0.9)
    for row, entry in enumerate(rows):
        if isinstance(entry, Agreed):
            _draw(axes, row, entry)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(
        *padded([value for agreement in agreements for value in (0.0, *agreement.values, *agreement.shuffled)])
    )
    texts = [f"reference: {shorten(entry, 70)}" if isinstance(entry, str) else entry.arm for entry in rows]
    axes.set_yticks(range(len(rows)), [shorten(text, _NAMES - 8) for text in texts], color=INK, fontsize=FONT)
    for text, entry in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if isinstance(entry, str) else "normal")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("adjusted mutual information", labelpad=2)
    return figure


def _draw(axes: Axes, row: int, entry: Agreed) -> None:
    style = style_of(entry.role)
    # Behind the marks: only what lies to the right of the band is more than chance.
    axes.barh(row, entry.shuffled[1] - entry.shuffled[0], left=entry.shuffled[0], height=0.6, color=MUTED, alpha=0.3)
    axes.plot(entry.values, [row + 0.2] * len(entry.values), "o", ms=3, mec="none", mfc=style.color, alpha=0.6)
    axes.plot([entry.mean], [row - 0.08], style.marker, ms=5.5, color=style.color)
    text = f"{entry.mean:.2f}".replace("-", "\N{MINUS SIGN}")
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", size=SMALL, color=INK)
