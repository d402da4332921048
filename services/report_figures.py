"""The figures of a report: which there are for a study, and what is said under each of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_blockout import plots
from nas_blockout.curves import best_so_far, pareto_front, quartile_band
from services.comparison import TERMINAL, ArmResult, ComparisonDocument
from services.report_view import ReportView, TrialView

GAP_STEPS = {"soft": "soft P", "drawn": "drawn C", "hard": "hard C", "inherited": "inherited", "tuned": "fine-tuned"}
_LOST = ("failed", "pruned")


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what must be known to read it.

    Args:
        name: Of the figure in the page and among the artifacts.
        title: What is to be seen, in a few words.
        caption: How to read it.
        n: What it was computed from.
        data: Where its numbers are.
        figure: The figure itself.
        arm: Contestant that it is about, or None.
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
        """Whether it needs the width of a page."""
        return float(self.figure.get_size_inches()[0]) * 72 > 400

    def svg(self) -> str:
        """Return the figure as an element of a page."""
        said = f"{self.title}. {self.caption} {self.n}." + (f" Arm {self.arm}." if self.arm else "")
        return plots.to_svg(self.figure, name=self.name, description=said)


def pictures(view: ReportView, document: ComparisonDocument) -> dict[str, list[Picture]]:
    """Return the figures that the study has data for, by section of the report.

    The sections are ``accuracy``, ``cost``, ``search``, ``structure``, ``architecture`` and ``errors``.
    """
    return {
        "accuracy": [*_accuracy(document), *_differences(document)],
        "cost": [*_fronts(document), *_costs(view, document)],
        "search": [*_best_so_far(view, document), *_convergence(view, document)],
        "structure": list(_structure(view, document)),
        "architecture": list(_architectures(view, document)),
        "errors": list(_confusion(view, document)),
    }


def in_order(document: ComparisonDocument) -> dict[str, ArmResult]:
    """Return the arms, best first if they are ranked."""
    return {name: document.arms[name] for name in document.ranking or document.arms}


def gaps(view: ReportView, document: ComparisonDocument) -> dict[str, dict[str, list[float]]]:
    """Return, by arm and step from P to a fine-tuned branched network, the validation accuracy of every seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in in_order(document):
        models = [trial for trial in view.models(name) if trial.result.get("gap")]
        if models:
            by_seed = [{**t.result["gap"], "tuned": t.result.get("validation_accuracy")} for t in models]
            found[name] = {
                text: [float(gap[step]) for gap in by_seed if gap.get(step) is not None]
                for step, text in GAP_STEPS.items()
            }
    return found


def confusions(view: ReportView, document: ComparisonDocument) -> dict[str, list[list[int]]]:
    """Return, by arm, test images by true and predicted class, added up over the retrained models."""
    found = {}
    for name in in_order(document):
        counts = [trial.result["confusion"] for trial in view.models(name) if trial.result.get("confusion")]
        if counts:
            found[name] = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*counts, strict=True)]
    return found


def counted(counts: Sequence[int], noun: str = "") -> str:
    """Say how many: ``n = 5 seeds`` or ``n = 3 to 5 seeds``."""
    low, high = (min(counts), max(counts)) if counts else (0, 0)
    return f"n = {low if low == high else f'{low} to {high}'} {noun}".strip()


def _accuracy(document: ComparisonDocument) -> Iterator[Picture]:
    arms = in_order(document)
    estimates = [
        plots.Estimate(
            name, arm.role, tuple(found.per_seed.values()) if found else (), found.mean if found else None,
            found.ci95 if found else None,
        )
        for name, arm in arms.items()
        for found in [arm.test_accuracy]
    ]  # fmt: skip
    seeds = [len(estimate.values) for estimate in estimates]
    yield Picture(
        "accuracy",
        "Test accuracy of the retrained models",
        "Large marks are means over seeds, bars their 95% intervals (Student's t over seeds), dots single seeds. "
        "An arm without a bar has too few seeds for an interval.",
        counted(seeds, "seeds an arm"),
        "comparison.json, arms.*.test_accuracy",
        plots.figure_accuracy(estimates),
    )


def _differences(document: ComparisonDocument) -> Iterator[Picture]:
    if not document.pairs:
        return
    pairs = [
        plots.Difference(p.a, p.b, p.difference, p.ci95, p.verdict != "no difference shown") for p in document.pairs
    ]
    yield Picture(
        "differences",
        "Differences, seed by seed",
        "Right of 0 the first arm is better. Bars are 95% intervals of the mean difference, each for its pair alone; "
        "filled marks are differences shown after Holm's correction for all pairs, hollow marks are not shown.",
        counted([pair.seeds for pair in document.pairs], "paired seeds"),
        "comparison.json, pairs",
        plots.figure_differences(pairs),
    )


def _fronts(document: ComparisonDocument) -> Iterator[Picture]:
    costs = {
        "macs": ("multiply-accumulates an image", "MACs", lambda arm: arm.macs),
        "latency": ("milliseconds an image, batch of 1", "latency", lambda arm: arm.latency_ms and arm.latency_ms.batch_1),
    }  # fmt: skip
    for key, (label, noun, cost) in costs.items():
        points = [
            plots.Point(name, arm.role, float(found), arm.test_accuracy.mean, arm.test_accuracy.ci95)
            for name, arm in in_order(document).items()
            if (found := cost(arm)) is not None and arm.test_accuracy is not None
        ]
        if not points:
            continue
        front = pareto_front([point.accuracy for point in points], [point.cost for point in points])
        seeds = [len(arm.test_accuracy.per_seed) for arm in document.arms.values() if arm.test_accuracy]
        yield Picture(
            f"front-{key}",
            f"Accuracy against {noun}",
            f"The dashed line joins the arms that no other beats in both. Bars are 95% intervals over seeds; the cost "
            f"is that of the exported model. {_marks()}",
            f"{counted(seeds, 'seeds an arm')}, 1 exported model an arm",
            f"comparison.json, arms.*.{'macs' if key == 'macs' else 'latency_ms'} and arms.*.test_accuracy",
            plots.figure_front(points, front, label=label),
        )


def _marks() -> str:
    return "Circles learn their structure, diamonds are placebos, squares controls, triangles rivals."


def _costs(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    trials = [arm.trials for arm in document.arms.values()]
    budget = document.budget
    shared = (counted(trials, "trials an arm"), "comparison.json, arms.*.cost; trials.csv, by trial")
    passes = {name: _parts(view, name, arm, "sample_passes") for name, arm in in_order(document).items()}
    yield Picture(
        "cost-passes",
        "Sample passes by phase",
        f"Images times epochs trained on, failed and pruned trials included. The line is the budget of every arm, "
        f"{budget.per_arm:,}, the band the tolerance of {budget.tolerance:.0%} around it.",
        *shared,
        plots.figure_cost(passes, label="sample passes", budget=budget.per_arm, tolerance=budget.tolerance),
    )
    seconds = {name: _parts(view, name, arm, "seconds") for name, arm in in_order(document).items()}
    yield Picture(
        "cost-seconds",
        "Seconds by phase",
        "Measured training time, added up over workers. Overhead is what proposing, distilling and proving took. "
        "There is no band: each bar is a sum.",
        *shared,
        plots.figure_cost(seconds, label="seconds"),
    )


def _parts(view: ReportView, name: str, arm: ArmResult, unit: str) -> dict[str, float]:
    lost = {
        phase: sum(getattr(t, unit) for t in view.trials if (t.arm, t.phase) == (name, phase) and t.state in _LOST)
        for phase in ("search", "retrain")
    }
    return {
        "search": max(0.0, getattr(arm.cost.search, unit) - lost["search"]),
        "search, failed or pruned": lost["search"],
        "retraining": max(0.0, getattr(arm.cost.retrain, unit) - lost["retrain"]),
        "retraining, failed": lost["retrain"],
        "overhead": arm.cost.overhead_seconds if unit == "seconds" else 0.0,
        "planned, not spent": float(arm.cost.forfeited_sample_passes) if unit == "sample_passes" else 0.0,
    }


def _best_so_far(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    searches = {name: _searches(view, name) for name in in_order(document)}
    searched = {name: found for name, found in searches.items() if found}
    if not searched:
        return
    drawn = [_search_curve(name, document.arms[name].role, found) for name, found in searched.items()]
    several = max(map(len, searched.values())) > 1
    band = "the line is their median, the band their quartiles" if several else "one search an arm, so there is no band"
    absent = [name for name in searches if name not in searched]
    yield Picture(
        "best-so-far",
        "Best validation accuracy so far against budget",
        f"Colour is the arm of the panel, grey the others; {band}; dots are ended trials, failed ones too. The dotted "
        f"line is the whole budget, of which retraining takes the rest."
        + (f" Without a search: {', '.join(absent)}." if absent else ""),
        f"{counted([len(found) for found in searched.values()], 'searches an arm')}, trials in each panel",
        "trials.csv, phase search",
        plots.figure_best_so_far(drawn, budget=document.budget.per_arm),
    )


def _searches(view: ReportView, arm: str) -> list[list[TrialView]]:
    found: dict[int, list[TrialView]] = {}
    for trial in sorted(view.trials, key=lambda trial: trial.number):
        if trial.arm == arm and trial.phase == "search" and trial.state in TERMINAL:
            found.setdefault(trial.search, []).append(trial)
    return list(found.values())


def _search_curve(name: str, role: str, searches: Sequence[Sequence[TrialView]]) -> plots.Curve:
    curves = [best_so_far([t.sample_passes for t in trials], [_score(t) for t in trials]) for trials in searches]
    trials = sum(map(len, searches))
    if len(curves) == 1:
        return plots.Curve(name, role, tuple(curves[0].cost), tuple(curves[0].best), note=f"{trials} trials")
    grid = sorted({float(cost) for curve in curves for cost in curve.cost})
    band = quartile_band(curves, grid)
    note = f"{trials} in {len(curves)}"
    return plots.Curve(name, role, tuple(grid), tuple(band.median), tuple(band.lower), tuple(band.upper), note)


def _score(trial: TrialView) -> float:
    return trial.score if trial.state == "complete" and trial.score is not None else float("nan")


def _convergence(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    drawn = [
        curve
        for name, arm in in_order(document).items()
        if (curve := _training_curve(name, arm.role, view.models(name))) is not None
    ]
    if not drawn:
        return
    yield Picture(
        "convergence",
        "Convergence of the retrained models",
        "Validation accuracy after each epoch: the line is the mean over seeds, the band their range; grey lines are "
        "the means of the other arms. A dotted line is where an arm goes from learning its structure to fine-tuning. "
        "The axis may leave out the first epochs.",
        "n = seeds, in each panel",
        "the store, epochs of the retrained trials",
        plots.figure_convergence(drawn),
    )


def _training_curve(name: str, role: str, models: Sequence[TrialView]) -> plots.Curve | None:
    by_epoch: dict[int, list[float]] = {}
    for trial in models:
        for record in trial.epochs:
            if record.get("validation_accuracy") is not None:
                by_epoch.setdefault(int(record["epoch"]) + 1, []).append(float(record["validation_accuracy"]))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    stages = [(int(record["epoch"]) + 1, record.get("stage")) for record in models[0].epochs]
    marks = [(a[0] + b[0]) / 2 for a, b in zip(stages, stages[1:], strict=False) if a[1] != b[1]]
    return plots.Curve(
        name, role, tuple(map(float, epochs)), tuple(sum(found) / len(found) for found in values),
        tuple(map(min, values)), tuple(map(max, values)), f"n = {len(models)}", tuple(marks),
    )  # fmt: skip


def _exported(view: ReportView, name: str, arm: ArmResult) -> TrialView | None:
    return next((trial for trial in view.models(name) if trial.seed == arm.exported_seed), None)


def _structure(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield what each arm learned; a placebo learned the same before it was shuffled, and is left out."""
    for number, (name, arm) in enumerate(in_order(document).items()):
        trial = _exported(view, name, arm)
        probabilities = (trial.result.get("probabilities") if trial else None) or {}
        if trial is None or arm.role == "placebo":
            continue
        yield from _density(number, name, trial, list(probabilities))
        if probabilities:
            yield from _memberships(view, number, name, trial)
    steps = gaps(view, document)
    if steps:
        yield Picture(
            "gap",
            "From learned probabilities to a branched network",
            "Validation accuracy with P as it is (soft), with drawn memberships, with hard ones, after their weights "
            "were handed to the branched network, and after fine-tuning it. The thick line is the mean over seeds, "
            "thin lines are single seeds; there is no other band.",
            "n = seeds, in each panel",
            "trials.csv, gap.*",
            plots.figure_gap({name: (document.arms[name].role, found) for name, found in steps.items()}),
        )


def _density(number: int, name: str, trial: TrialView, layers: Sequence[str]) -> Iterator[Picture]:
    prefix = "blockout/density/"
    records = [record for record in trial.epochs if any(key.startswith(prefix) for key in record.get("telemetry") or {})]
    if not records:
        return
    found = [key.removeprefix(prefix) for key in records[0]["telemetry"] if key.startswith(prefix)]
    order = [layer for layer in layers if layer in found] + [layer for layer in found if layer not in layers]
    densities = {layer: [record["telemetry"][f"{prefix}{layer}"] for record in records] for layer in order}
    medians = {layer: [_median(record["telemetry"], layer) for record in records] for layer in order}
    yield Picture(
        f"density-{number}",
        "Spread of the membership probabilities while they were learned",
        "A panel a layer, in the order of the network: the darker, the more entries of P in that bin (square root of "
        "the share, twenty bins); the line is their median. Structure has been learned where the mass lies at 0 and 1.",
        f"n = 1 training, seed {trial.seed}, {len(records)} epochs",
        "the store, epochs.telemetry blockout/density/* and blockout/median/*",
        plots.figure_density(densities, medians, epochs=[int(record["epoch"]) + 1 for record in records]),
        name,
    )


def _median(telemetry: Mapping[str, Any], layer: str) -> float:
    value = telemetry.get(f"blockout/median/{layer}")
    return float("nan") if value is None else float(value)


def _memberships(view: ReportView, number: int, name: str, trial: TrialView) -> Iterator[Picture]:
    probabilities = trial.result["probabilities"]
    *_, last = probabilities.values()
    clusters, of_classes = len(last[0]), len(last) == len(view.class_names)
    one = f"n = 1 training, seed {trial.seed}"
    data = "the store, result.probabilities"
    if clusters > 1:
        figure, named = plots.figure_projection(probabilities, view.class_names if of_classes else None)
        yield Picture(
            f"projection-{number}",
            "Nodes by their membership probabilities",
            f"Each dot is a node, at the two first principal components of its row of P (one projection for all "
            f"layers), in the colour of its strongest cluster. {named} of {len(last)} nodes of the last layer are "
            f"named, the others had no room. There is no band.",
            f"{one}, {sum(map(len, probabilities.values())):,} nodes",
            data,
            figure,
            name,
        )
    if of_classes:
        layer = list(probabilities)[-1]
        models = [t for t in view.models(name) if len((t.result.get("probabilities") or {}).get(layer, ())) == len(last)]
        expected = [[sum(row) for row in t.result["probabilities"][layer]] for t in models]
        yield Picture(
            f"classes-{number}",
            "Expected clusters of each class",
            "The sum of a class's membership probabilities: dots are means over seeds, lines their range; over classes "
            "the thick line is the median and the grey band lies between the quartiles.",
            f"n = {len(expected)} seeds, {len(last)} classes",
            data,
            plots.figure_clusters_per_class(expected, view.class_names),
            name,
        )
    if len(probabilities) > 1:
        yield Picture(
            f"masks-{number}",
            "Expected masks, nodes in the order of their clusters",
            "From each layer (columns) to the next (rows): the darker, the more of a weight is kept; full colour is a "
            "weight kept in every cluster. Strips show the strongest cluster. Blocks on the diagonal are branches. "
            "Large masks are averaged to 96 rows and columns; there is no band.",
            f"{one}, {clusters} clusters",
            data,
            plots.figure_masks(probabilities),
            name,
        )


def _architectures(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    for number, (name, arm) in enumerate(in_order(document).items()):
        trial = _exported(view, name, arm)
        found = (trial.result.get("architecture") if trial else None) or None
        if trial is None or found is None or all(len(layer["groups"]) == 1 for layer in found["layers"]):
            continue
        labels = [label for group in found["layers"][-1]["groups"] for label in group.get("classes") or ()]
        yield Picture(
            f"architecture-{number}",
            "Architecture of the exported model",
            "Columns are layers, boxes groups of nodes with their number, stripes the clusters they belong to; lines "
            "join groups that share a cluster, and the classes stand at the end. There is no band.",
            f"n = 1 model, seed {trial.seed}, architecture {arm.architecture or 'without a hash'}",
            "models/*/architecture.json",
            plots.figure_architecture(found, view.names_of(max(labels, default=-1) + 1)),
            name,
        )


def _confusion(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    matrices = confusions(view, document)
    if not matrices:
        return
    names = view.names_of(len(next(iter(matrices.values()))))
    models = [len([t for t in view.models(name) if t.result.get("confusion")]) for name in matrices]
    images = [sum(map(sum, counts)) for counts in matrices.values()]
    yield Picture(
        "confusion",
        "What is mistaken for what",
        "Rows are true classes, columns what they were taken for, in the order of the data; the darker, the larger the "
        "share of the row. Right answers (the diagonal) are left out. All panels have one scale; there is no band.",
        f"{counted(models, 'seeds an arm')}, {counted(images).removeprefix('n = ')} test answers an arm",
        "the store, result.confusion",
        plots.figure_confusion(matrices, names),
    )
