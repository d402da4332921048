"""The verdict and the report of a study as notebooks show them: text that is escaped, figures that need no network."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nas_blockout.interactive.html_text import heading
from services.analysis.comparison import ComparisonDocument
from services.analysis.verdict import Verdict, ship_heading, ship_rows, verdict_of
from services.files.study_dir import Folder


@dataclass(frozen=True, slots=True)
class ShownVerdict:
    """What a study shows.

    Args:
        value: The verdict: the answer, its reason, its numbers.
        ship: Which model to ship, or why none.
        why: What is known of that model, as pairs of a label and a text.
    """

    value: Verdict
    ship: str
    why: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, document: ComparisonDocument) -> "ShownVerdict":
        """Return the verdict of a comparison."""
        return cls(verdict_of(document), ship_heading(document), tuple(ship_rows(document)))

    @property
    def answer(self) -> str:
        """``yes``, ``no`` or ``not shown``."""
        return self.value.answer

    def __str__(self) -> str:
        return self.value.text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_html_(self) -> str:
        """Return the verdict and the model to ship as HTML."""
        shipped = heading(self.ship, details=[f"{label}: {text}" for label, text in self.why])
        return heading(self.value.headline, details=self.value.numbers) + shipped


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """One figure of a report.

    Args:
        path: Of its SVG.
    """

    path: Path

    def _repr_html_(self) -> str:
        """Return the figure as HTML that holds it: as an image, in which nothing runs and nothing is loaded."""
        content = base64.b64encode(self.path.read_bytes()).decode()
        name = escape(self.path.stem)
        return f'<img alt="{name}" style="max-width:100%;background:white" src="data:image/svg+xml;base64,{content}">'


@dataclass(frozen=True, slots=True)
class StudyReport:
    """The report of a study; a path wherever one is expected.

    Args:
        path: Of its page.
        figures: By name, such as ``accuracy``.
    """

    path: Path
    figures: Mapping[str, ReportFigure]

    @classmethod
    def of(cls, folder: Folder) -> "StudyReport":
        """Return the report in the folder of a study."""
        found = sorted((folder.report.parent / "figures").glob("*.svg"))
        return cls(folder.report, {path.stem: ReportFigure(path) for path in found})

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_html_(self) -> str:
        """Return where the report is, and its figures, each behind its name."""
        drawn = "".join(
            f"<details><summary>{escape(name)}</summary>{figure._repr_html_()}</details>"
            for name, figure in self.figures.items()
        )
        return f'<p><a href="{escape(self.path.as_uri())}">{escape(str(self.path))}</a></p>{drawn}'
