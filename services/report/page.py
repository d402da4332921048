"""The report of a study as one HTML file: verdict, numbers, figures, and what is needed to reproduce it.

The sole importer of jinja2. The file needs no network and no script, and is the same for the same study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from nas_blockout.atomic_files import write_text
from nas_blockout.statistics import significance
from services.analysis.comparison import ArmResult, ComparisonDocument, asked
from services.analysis.latency import spread_text
from services.analysis.seed_metrics import PairResult
from services.analysis.verdict import note_rows, ship_heading, ship_rows, verdict_of
from services.budget.limits import WORDS
from services.files.study_dir import Folder
from services.report.view import ABSENT, ReportView, in_order, interval, percent

MOST_TRIALS = 1000
_MARKS = {"learned": "●", "placebo": "◆", "ablation": "■", "baseline": "▲"}


@dataclass(frozen=True, slots=True)
class ArmRow:
    """A row of the table of arms, as texts."""

    name: str
    role: str
    mark: str
    description: str
    test: str
    interval: str
    validation: str
    parameters: str
    macs: str
    latency_1: str
    latency_256: str
    search_passes: str
    search_seconds: str
    retrain_passes: str
    retrain_seconds: str
    overhead_seconds: str
    trials: str
    failed: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A row of the table of pairs, as texts."""

    a: str
    b: str
    difference: str
    interval: str
    seeds: str
    p: str
    p_permutation: str
    p_holm: str
    smallest_effect: str
    verdict: str


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """The three most frequent confusions of an arm, as texts."""

    arm: str
    predictions: str
    worst: tuple[str, ...]


def render(view: ReportView) -> str:
    """Return the report as HTML.

    Raises:
        ValueError: The comparison has another schema version.
    """
    return _composed(view)[0]


def write(view: ReportView, folder: Folder) -> Path:
    """Write ``report/index.html`` below the folder of the study and its figures beside it; return its path.

    Each file appears whole or not at all: the figures as SVG, ``report/figures/<name>.svg``, then the report.
    """
    from nas_blockout import plots

    html, drawings = _composed(view)
    figures = folder.report.parent / "figures"
    for name, svg in drawings.items():
        write_text(figures / name, plots.standalone(svg))
    for path in figures.glob("*.svg"):
        if path.name not in drawings:
            path.unlink()
    write_text(folder.report, html)
    return folder.report


def _composed(view: ReportView) -> tuple[str, dict[str, str]]:
    """Return the page, and its figures by the names of their files."""
    # Not at the top of the module: matplotlib takes a second to import, which commands that draw nothing need not pay.
    from services.report import accuracy, all_figures, answers, classes, corruption, structure, table_rows

    document = ComparisonDocument.model_validate(view.comparison)
    arms, gaps = in_order(document), structure.gaps(view, document)
    sections = all_figures.pictures(view, document)
    drawn = _drawn(sections)
    numbers = {picture.name: number for number, picture in enumerate(drawn, start=1)}
    svgs = {picture.name: _storable(picture.svg()) for picture in drawn}
    shown = asked(document)
    lost = [trial for trial in view.trials if trial.state in ("failed", "pruned")]
    fronts = table_rows.front_rows(document)
    page = _template().render(
        document=document,
        study=view.study,
        links=view.links,
        verdict=verdict_of(document),
        ship_heading=ship_heading(document),
        ship=ship_rows(document),
        facts=_facts(view, document),
        arms=[_arm_row(name, arm) for name, arm in arms.items()],
        shipped=document.shipped.arm if document.shipped is not None else None,
        pairs=[_pair_row(pair) for pair in shown],
        pair_count=len(document.pairs),
        seeds=_seed_table(arms),
        robust=corruption.robust_rows(document),
        kinds=corruption.kind_rows(document),
        robust_pairs=[_pair_row(pair) for pair in document.robustness.pairs] if document.robustness else [],
        costs=table_rows.cost_rows(view, document),
        devices=table_rows.devices(document),
        notes=note_rows(document),
        searches=table_rows.search_rows(view, document),
        fronts=fronts[:MOST_TRIALS],
        front_count=len(fronts),
        pictures=sections,
        svgs=svgs,
        learned=_by_arm(sections["structure"]),
        numbers=numbers,
        memberships=table_rows.memberships_rows(document),
        structures=table_rows.structure_rows(document),
        branches=table_rows.branch_rows(view, document),
        gaps=_gap_rows(gaps, raw=structure.GAP_STEPS["raw"], hard=structure.GAP_STEPS["hard"]),
        steps=list(next(iter(gaps.values()), ())),
        group_agreements=table_rows.group_agreement_rows(classes.group_agreements(view, document)),
        confusions=_confusion_rows(view, accuracy.confusions(view, document)),
        blocks=table_rows.blocks_rows(answers.kept_blocks(view, document)),
        unique_answers=table_rows.unique_answers_rows(answers.unique_answers(view, document)),
        trials=view.trials[:MOST_TRIALS],
        trial_count=len(view.trials),
        lost=lost[:MOST_TRIALS],
        lost_count=len(lost),
        environment=list(_leaves(view.environment)),
        study_text=yaml.safe_dump(_plain(view.study), sort_keys=False, allow_unicode=True, width=100),
        percent=percent,
        flat=lambda values: ", ".join(f"{key} {value}" for key, value in _leaves(values)),
    )
    return _storable(page), _files(drawn, svgs)


def _files(pictures: Sequence[Any], svgs: Mapping[str, str]) -> dict[str, str]:
    """Return the figures by file name; names of arms may differ only in characters that no file name can hold."""
    files: dict[str, str] = {}
    for picture in pictures:
        name = picture.file if picture.file not in files else f"{picture.name}.svg"
        files[name] = svgs[picture.name]
    return files


def _storable(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 cannot encode and a name may contain."""
    return text.encode("utf-8", "replace").decode("utf-8")


@cache  # to compile it takes as long as to draw a figure, and a study that runs is reported on again and again
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _drawn(sections: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return the figures of all sections, without the remarks in place of others."""
    return [picture for section in sections.values() for picture in section if hasattr(picture, "figure")]


def _by_arm(pictures: Sequence[Any]) -> dict[str, list[Any]]:
    by_arm: dict[str, list[Any]] = {}
    for picture in pictures:
        by_arm.setdefault(picture.arm, []).append(picture)
    return by_arm


def _facts(view: ReportView, document: ComparisonDocument) -> dict[str, str]:
    arms = document.arms.values()
    seeds = [len(arm.test_accuracy.per_seed) for arm in arms if arm.test_accuracy]
    images = [int(t.outcome["test_images"]) for t in view.trials if t.is_model and t.outcome.get("test_images")]
    least, most = min(seeds, default=0), max(seeds, default=0)
    facts = {
        "arms": f"{len(document.arms)}",
        "retraining seeds per arm": f"{least}" if least == most else f"{least} to {most}",
        "budget per arm": f"{document.budget.text} ± {document.budget.tolerance:.0%} of {WORDS[document.budget.unit]}",
        "trials": f"{sum(arm.trials for arm in arms)}",
        "failed": f"{sum(arm.failed for arm in arms)}",
        "pruned": f"{sum(arm.pruned for arm in arms)}",
    }
    return facts | ({"test images": f"{max(images):,}"} if images else {})


def _arm_row(name: str, arm: ArmResult) -> ArmRow:
    test, cost = arm.test_accuracy, arm.cost
    return ArmRow(
        name=name,
        role=arm.role,
        mark=_MARKS[arm.role],
        description=arm.description,
        test=percent(test.mean) if test else ABSENT,
        interval=interval(test) if test else "no retrained model",
        validation=percent(arm.validation_accuracy.mean) if arm.validation_accuracy else ABSENT,
        parameters=_count(arm.parameters),
        macs=_count(arm.macs),
        latency_1=spread_text(arm.latency_ms.batch_1, arm.latency_ms.batch_1_quartiles) if arm.latency_ms else ABSENT,
        latency_256=spread_text(arm.latency_ms.batch_256, arm.latency_ms.batch_256_quartiles)
        if arm.latency_ms
        else ABSENT,
        search_passes=_count(cost.search.sample_passes),
        search_seconds=f"{cost.search.seconds:,.1f}",
        retrain_passes=_count(cost.retrain.sample_passes),
        retrain_seconds=f"{cost.retrain.seconds:,.1f}",
        overhead_seconds=f"{cost.overhead_seconds:,.1f}",
        trials=str(arm.trials),
        failed=f"{arm.failed} failed" + (f", {arm.pruned} pruned" if arm.pruned else ""),
    )


def _pair_row(pair: PairResult) -> PairRow:
    return PairRow(
        a=pair.a,
        b=pair.b,
        difference=_points(pair.difference),
        interval=f"{_points(pair.ci95[0])} to {_points(pair.ci95[1])}" if pair.ci95 else ABSENT,
        seeds=str(pair.seeds),
        p=_p(pair.p),
        p_permutation=_p(pair.p_permutation),
        p_holm=_p(pair.p_holm),
        smallest_effect=f"{100 * pair.smallest_effect:.2f}" if pair.smallest_effect is not None else ABSENT,
        verdict=pair.verdict,
    )


def _seed_table(arms: Mapping[str, ArmResult]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the seeds, and by arm its test accuracy for each of them."""
    by_arm = {name: arm.test_accuracy.by_seed if arm.test_accuracy else {} for name, arm in arms.items()}
    seeds = sorted({seed for values in by_arm.values() for seed in values})
    rows = [
        (name, [percent(values[seed]) if seed in values else ABSENT for seed in seeds])
        for name, values in by_arm.items()
    ]
    return [str(seed) for seed in seeds], rows


def _gap_rows(
    gaps: Mapping[str, Mapping[str, Sequence[float]]], *, raw: str, hard: str
) -> list[tuple[str, int, list[str], str]]:
    """Return by arm the seeds, the mean accuracy at each step, and the points between thresholded and hard C."""
    rows = []
    for name, steps in gaps.items():
        means = {step: sum(values) / len(values) if values else None for step, values in steps.items()}
        before, after = means.get(raw), means.get(hard)
        change = ABSENT if before is None or after is None else _points(after - before)
        rows.append((name, max(map(len, steps.values())), [percent(mean) for mean in means.values()], change))
    return rows


def _confusion_rows(view: ReportView, matrices: Mapping[str, list[list[int]]]) -> list[ConfusionRow]:
    return [_confusion_row(view.names_of(len(counts)), arm, counts) for arm, counts in matrices.items()]


def _confusion_row(names: Sequence[str], arm: str, counts: list[list[int]]) -> ConfusionRow:
    shares = [
        (cells[predicted] / max(sum(cells), 1), true, predicted)
        for true, cells in enumerate(counts)
        for predicted in range(len(cells))
        if predicted != true and cells[predicted]
    ]
    # Ties go by the order of the classes, so that the same study has the same report.
    worst = sorted(shares, key=lambda confusion: (-confusion[0], confusion[1:]))[:3]
    texts = tuple(f"{names[true]} as {names[predicted]} ({share:.1%})" for share, true, predicted in worst)
    return ConfusionRow(arm, f"{sum(map(sum, counts)):,}", texts)


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _count(number: int | None) -> str:
    return ABSENT if number is None else f"{number:,}"


def _p(value: float) -> str:
    return significance.p_text(value).removeprefix("p ").removeprefix("= ")


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of a document by dotted name."""
    if not isinstance(value, Mapping):
        return [(prefix, ABSENT if value is None else f"{value:.6g}" if isinstance(value, float) else str(value))]
    return [leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}.{key}" if prefix else str(key))]


def _plain(value: Any) -> Any:
    """Return a document in the types that YAML writes without tags."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
