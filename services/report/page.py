"""The report of a study as one HTML file: verdict, numbers, figures, and what is needed to reproduce it.

The sole importer of jinja2. The file needs no network, is whole without its script, which sorts and filters tables,
and is the same for the same study. Beside it stand every table as CSV and LaTeX, and every figure as SVG and PDF.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from nas_blockout.atomic_files import write_bytes, write_text
from services.analysis.comparison import ComparisonDocument
from services.analysis.verdict import note_rows, ship_heading, ship_rows, verdict_of
from services.budget.limits import WORDS
from services.files.study_dir import Folder
from services.report.view import ReportView, Told

if TYPE_CHECKING:
    from services.report.figure import Picture, Shown  # which import matplotlib
    from services.report.tables.report_table import Table

TEMPLATES = Path(__file__).parents[1] / "templates"
MOST_INSIDE = 256 * 1024  # bytes of a file that the page itself holds; larger ones are beside it
FIGURES, TABLES = "figures", "tables"  # folders beside the page
_MARKS = {"learned": "●", "placebo": "◆", "ablation": "■", "baseline": "▲"}
_KINDS = {".csv": "text/csv", ".tex": "application/x-tex", ".pdf": "application/pdf"}


@dataclass(frozen=True, slots=True)
class _Content:
    """What a page shows: figures and tables by section, the figures drawn, and the stem of the file of each."""

    view: ReportView
    document: ComparisonDocument
    pictures: Mapping[str, Sequence["Shown"]]
    tables: Mapping[str, Sequence["Table"]]
    drawn: Sequence["Picture"]
    stems: Mapping[str, str]
    svgs: Mapping[str, str]

    def files(self) -> dict[str, bytes]:
        """Return what stands beside the page, by path."""
        from nas_blockout import plots
        from services.report.tables.table_files import csv_text, latex_text

        files: dict[str, bytes] = {}
        for shown in (table for section in self.tables.values() for table in section):
            files[f"{TABLES}/{shown.name}.csv"] = _storable(csv_text(shown)).encode()
            files[f"{TABLES}/{shown.name}.tex"] = _storable(latex_text(shown)).encode()
        for picture in self.drawn:
            stem = f"{FIGURES}/{self.stems[picture.name]}"
            svg = plots.standalone(self.svgs[picture.name], description=picture.description)
            files[f"{stem}.svg"] = _storable(svg).encode()
            files[f"{stem}.pdf"] = picture.pdf()
        return files


def render(view: ReportView) -> str:
    """Return the report as HTML, with links to the files that `write` puts beside it.

    Raises:
        ValueError: The comparison has another schema version.
    """
    return _page(_content(view), {})


def write(view: ReportView, folder: Folder) -> Path:
    """Write ``report/index.html`` below the folder of the study and its files beside it; return its path.

    Each file appears whole or not at all: ``report/tables/<name>.csv`` and ``.tex``, ``report/figures/<name>.svg`` and
    ``.pdf``, then the report. It holds those that are not too large, so that its links work wherever it is read.
    """
    content = _content(view)
    files = content.files()
    root = folder.report.parent
    for name, data in files.items():
        write_bytes(root / name, data)
    for path in (found for place in (FIGURES, TABLES) for found in (root / place).glob("*.*")):
        if path.relative_to(root).as_posix() not in files:
            path.unlink()
    write_text(folder.report, _page(content, files))
    return folder.report


def script_hash() -> str:
    """Return the source expression by which a content security policy lets the script of the page run, and no other."""
    digest = hashlib.sha256(_script().encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _script() -> str:
    return (TEMPLATES / "report.js").read_text(encoding="utf-8")


def _content(view: ReportView) -> _Content:
    # Not at the top of the module: matplotlib takes a second to import, which commands that draw nothing need not pay.
    from services.report import all_figures
    from services.report.figure import Picture
    from services.report.tables import all_tables

    document = ComparisonDocument.model_validate(view.comparison)
    pictures = all_figures.pictures(view, document)
    drawn = [shown for section in pictures.values() for shown in section if isinstance(shown, Picture)]
    stems: dict[str, str] = {}
    for picture in drawn:  # names of arms may differ only in characters that no file name can hold
        stems[picture.name] = picture.file if picture.file not in stems.values() else picture.name
    svgs = {picture.name: _storable(picture.svg()) for picture in drawn}
    return _Content(view, document, pictures, all_tables.tables(view, document), drawn, stems, svgs)


def _page(content: _Content, inside: Mapping[str, bytes]) -> str:
    """Return the page; files that are given and small enough are in its links."""
    from services.report.tables.cost_tables import MOST_TRIALS
    from services.report.tables.structure_tables import structures

    view, document = content.view, content.document
    page = _template().render(
        document=document,
        study=view.study,
        links=view.links,
        script=_script(),
        script_hash=script_hash(),
        verdict=verdict_of(document),
        ship_heading=ship_heading(document),
        ship=ship_rows(document),
        facts=_facts(view, document),
        notes=note_rows(document),
        marks=_MARKS,
        pictures=content.pictures,
        tables=content.tables,
        svgs=content.svgs,
        stems=content.stems,
        learned=_by_arm(content.pictures["structure"]),
        numbers={picture.name: number for number, picture in enumerate(content.drawn, start=1)},
        structures=_grouped({name: told.summary for name, told in structures(document).items()}),
        most_rows=MOST_TRIALS,
        lost_count=len(content.tables["lost"][0].rows) if content.tables["lost"] else 0,
        trial_count=len(view.trials),
        study_text=yaml.safe_dump(_plain(view.study), sort_keys=False, allow_unicode=True, width=100),
        once=Told().once,
        address=_address_in(inside),
    )
    return _storable(page)


def _address_in(inside: Mapping[str, bytes]) -> Callable[[str], str]:
    """Return a function from the path of a file beside the page to what a link to it says."""

    def address(name: str) -> str:
        data = inside.get(name)
        if data is None or len(data) > MOST_INSIDE:
            return name
        return f"data:{_KINDS[Path(name).suffix]};base64,{base64.b64encode(data).decode()}"

    return address


def _storable(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 cannot encode and a name may contain."""
    return text.encode("utf-8", "replace").decode("utf-8")


@cache  # to compile it takes as long as to draw a figure, and a study that runs is reported on again and again
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _by_arm(pictures: Sequence["Shown"]) -> dict[str, list["Shown"]]:
    by_arm: dict[str, list[Shown]] = {}
    for picture in pictures:
        by_arm.setdefault(str(picture.arm), []).append(picture)
    return by_arm


def _grouped(summaries: Mapping[str, str]) -> dict[str, str]:
    """Return texts by the names of all that have the same."""
    names: dict[str, list[str]] = {}
    for name, summary in summaries.items():
        names.setdefault(summary, []).append(name)
    return {", ".join(group): summary for summary, group in names.items()}


def _facts(view: ReportView, document: ComparisonDocument) -> dict[str, str]:
    arms = document.arms.values()
    seeds = [len(arm.test_accuracy.per_seed) for arm in arms if arm.test_accuracy]
    images = [int(t.outcome["test_images"]) for t in view.trials if t.is_model and t.outcome.get("test_images")]
    least, most = min(seeds, default=0), max(seeds, default=0)
    facts = {
        "arms": f"{len(document.arms)}",
        "retraining seeds per arm": f"{least}" if least == most else f"{least} to {most}",
        **({"folds": f"{document.folds}"} if document.folds is not None else {}),
        "budget per arm": f"{document.budget.text} ± {document.budget.tolerance:.0%} of {WORDS[document.budget.unit]}",
        "trials": f"{sum(arm.trials for arm in arms)}",
        "failed": f"{sum(arm.failed for arm in arms)}",
        "pruned": f"{sum(arm.pruned for arm in arms)}",
    }
    return facts | ({"test images": f"{max(images):,}"} if images else {})


def _plain(value: Any) -> Any:
    """Return a document in the types that YAML writes without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
