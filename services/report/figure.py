"""A figure of a report together with its caption."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nas_blockout import plots
from services.analysis.comparison import ArmResult
from services.report.view import ReportView
from services.trial_record import Trial


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
        """File name, the same whichever other figures there are: ``best-so-far.svg``, ``masks-blockout.svg``."""
        arm = re.sub(r"[^a-z0-9-]+", "-", (self.arm or "").lower()).strip("-")
        return f"{re.sub(r'-[0-9]+$', '', self.name)}{'-' if arm else ''}{arm}.svg"

    def svg(self) -> str:
        """Return the figure as an element of a page."""
        description = f"{self.title}. {self.caption} {self.n}." + (f" Arm {self.arm}." if self.arm else "")
        return plots.to_svg(self.figure, name=self.name, description=description)


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
