"""The figures of the results: accuracies, differences, costs, searches, trainings."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from nas_blockout import plots
from nas_blockout.serialization import count_of
from nas_blockout.statistics.search_curves import best_so_far
from services.analysis.comparison import ArmResult, ComparisonDocument, asked
from services.analysis.latency import not_told_apart, overlap, undominated
from services.report.figure import Picture, Remark, Shown, counted, flat_front
from services.report.view import ReportView, in_order
from services.trial_record import RETRAIN, SEARCH, Trial

_LOST = ("failed", "pruned")
_PASSES = "Sample passes by phase"


def accuracy(document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the test accuracy of every arm, or what the study goes by instead."""
    arms = in_order(document)
    estimates = [
        plots.Estimate(
            name, arm.role, tuple(test.per_seed.values()) if test else (), test.mean if test else None,
            test.ci95 if test else None,
        )
        for name, arm in arms.items()
        for test in [document.test_of(name)]
    ]  # fmt: skip
    seeds = [len(estimate.values) for estimate in estimates]
    title = f"Test {document.metric_words} of the retrained models"
    if sum(seeds) < 2:
        there = "is only one retrained model" if sum(seeds) else "is no retrained model"
        yield Remark("accuracy", title, f"There {there}, so there is nothing to draw.")
        return
    yield Picture(
        "accuracy",
        title,
        f"Large marks are means over seeds, bars their 95% intervals ({document.t_words}), dots single seeds. "
        "An arm without a bar has too few seeds for an interval.",
        counted(seeds, "seed per arm", "seeds per arm"),
        f"comparison.json, arms.*.test_{document.metric}",
        plots.figure_accuracy(estimates, label=f"test {document.metric_words} (%)"),
    )


def differences(document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the paired differences that readers ask about, if there are any."""
    shown = asked(document)
    if not shown:
        return
    pairs = [plots.Difference(p.a, p.b, p.difference, p.ci95, p.verdict != "no difference shown") for p in shown]
    yield Picture(
        "differences",
        "Differences between arms, paired by seed",
        "To the right of 0 the first arm is better. Bars are 95% intervals of the mean difference, not corrected for "
        "the number of pairs. Filled marks are significant after Holm's correction over all pairs, hollow ones are "
        "not.",
        counted([pair.seeds for pair in shown], "paired seed"),
        "comparison.json, pairs",
        plots.figure_differences(pairs, of=f"test {document.metric_words}"),
    )


def fronts(document: ComparisonDocument) -> Iterator[Shown]:
    """Yield accuracy against MACs and against latency, where they are known."""
    arms = in_order(document)
    macs = {name: (float(arm.macs), None) for name, arm in arms.items() if arm.macs is not None}
    if points := _points(arms, macs):
        names = undominated({point.name: (point.accuracy, (point.cost, point.cost)) for point in points})
        caption = "The dashed line joins the arms on the Pareto front."
        yield _front(arms, points, names, caption, name="macs", label="multiply-accumulates per image")
    measured = {name: arm.latency_ms for name, arm in arms.items() if arm.latency_ms is not None}
    latency = {name: (found.batch_1, found.batch_1_quartiles) for name, found in measured.items()}
    if points := _points(arms, latency):
        if (alike := _same_latency(points)) is not None:
            yield alike
            return
        names, caption = _latency_front(points)
        yield _front(arms, points, names, caption, name="latency", label="milliseconds per image, batch of 1")


def _points(
    arms: Mapping[str, ArmResult], costs: Mapping[str, tuple[float, tuple[float, float] | None]]
) -> list[plots.Point]:
    return [
        plots.Point(arm, arms[arm].role, cost, test.mean, test.ci95, spread)
        for arm, (cost, spread) in costs.items()
        if (test := arms[arm].test_accuracy) is not None
    ]


def _same_latency(points: Sequence[plots.Point]) -> Remark | None:
    """Return what is said in place of accuracy against latency, if the latencies tell no two arms apart."""
    spreads = [point.spread for point in points if point.spread is not None]
    if len(points) < 2 or len(spreads) < len(points) or not all(overlap(a, b) for a, b in combinations(spreads, 2)):
        return None
    return Remark(
        "front-latency",
        "Accuracy against latency",
        f"No two of the {len(points)} models are told apart in latency: the middle halves of their rounds overlap, "
        f"from {min(low for low, _ in spreads):.3g} to {max(high for _, high in spreads):.3g} ms an image.",
    )


def _latency_front(points: Sequence[plots.Point]) -> tuple[list[str], str]:
    """Return the arms that a line may join, and what the caption says about it: a front of noise is not drawn."""
    spreads = {point.name: point.spread for point in points if point.spread is not None}
    if len(spreads) < len(points):
        return [], (
            "No front is drawn: the latency was measured one model after the other and has no spread, so that "
            "it shows no difference between models; `nas-blockout extend` measures them together."
        )
    caption = (
        "Latency is the median over interleaved rounds of all models, level bars are the middle half of the rounds. "
    )
    alike = not_told_apart(spreads)
    if alike:
        groups = "; ".join(", ".join(group) for group in alike)
        caption += f"Not told apart in latency, since their bars overlap (hollow marks): {groups}. "
    names = undominated({point.name: (point.accuracy, spreads[point.name]) for point in points})
    if any(overlap(spreads[a], spreads[b]) for a, b in combinations(names, 2)):
        return [], caption + "No front is drawn, because arms that would lie on it are among them."
    return names, caption + "The dashed line joins the arms on the Pareto front."


def _front(
    arms: Mapping[str, ArmResult],
    points: Sequence[plots.Point],
    front: Sequence[str],
    caption: str,
    *,
    name: str,
    label: str,
) -> Shown:
    title = f"Accuracy against {'MACs' if name == 'macs' else 'latency'}"
    costs = {point.name: point.cost for point in points}
    if (remark := flat_front(arms, costs, f"front-{name}", title, label)) is not None:
        return remark
    at = {point.name: index for index, point in enumerate(points)}
    seeds = [len(test.per_seed) for point in points if (test := arms[point.name].test_accuracy) is not None]
    return Picture(
        f"front-{name}",
        title,
        f"{caption} Upright bars are 95% intervals over seeds; the cost is that of the exported model. Circles are "
        "arms that learn their structure, diamonds placebos, squares ablations, triangles baselines.",
        f"{counted(seeds, 'seed')} per arm, 1 exported model",
        f"comparison.json, arms.*.{'macs' if name == 'macs' else 'latency_ms'} and arms.*.test_accuracy",
        plots.figure_front(points, [at[arm] for arm in front], label=label),
    )


def costs(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield what each phase of each arm cost, in sample passes and in seconds."""
    trials = [arm.trials for arm in document.arms.values()]
    budget = document.budget
    shared = (counted(trials, "trial per arm", "trials per arm"), "comparison.json, arms.*.cost; trials.csv, by trial")
    passes = {name: _parts(view, name, arm, "sample_passes") for name, arm in in_order(document).items()}
    yield _alike(passes) or Picture(
        "cost-passes",
        _PASSES,
        "A sample pass is one image in one epoch. Failed and pruned trials are included; planned but unspent is what "
        f"failed trials did not use. The budget per arm is {budget.text}; the line is the limit of sample passes, if "
        f"there is one, the band its tolerance of {budget.tolerance:.0%}.",
        *shared,
        plots.figure_cost(passes, label="sample passes", budget=budget.passes, tolerance=budget.tolerance),
    )
    seconds = {name: _parts(view, name, arm, "seconds") for name, arm in in_order(document).items()}
    yield Picture(
        "cost-seconds",
        "Seconds by phase",
        "Measured training time, summed over workers. Overhead is proposing trials, and deriving and verifying "
        "networks. Each bar is a sum.",
        *shared,
        plots.figure_cost(seconds, label="seconds"),
    )


def _alike(passes: Mapping[str, Mapping[str, float]]) -> Remark | None:
    """Return what is said in place of the sample passes, if every arm spent as many in every phase."""
    first = next(iter(passes.values()))
    if any(parts != first for parts in passes.values()):
        return None
    spent = ", ".join(f"{amount:,.0f} in {phase}" for phase, amount in first.items() if amount)
    which = f"All {len(passes)} arms" if len(passes) > 1 else "The only arm"
    return Remark("cost-passes", _PASSES, f"{which} spent the same: {spent or 'nothing'}.")


def _parts(view: ReportView, name: str, arm: ArmResult, unit: str) -> dict[str, float]:
    # The cost of a phase includes its failed and pruned trials, which the figure stacks as parts of their own.
    lost = {
        phase: sum(getattr(t, unit) for t in view.trials if (t.arm, t.phase) == (name, phase) and t.state in _LOST)
        for phase in (SEARCH, RETRAIN)
    }
    return {
        "search": max(0.0, getattr(arm.cost.search, unit) - lost[SEARCH]),
        "search, failed or pruned": lost[SEARCH],
        "retraining": max(0.0, getattr(arm.cost.retrain, unit) - lost[RETRAIN]),
        "retraining, failed": lost[RETRAIN],
        "overhead": arm.cost.overhead_seconds if unit == "seconds" else 0.0,
        "planned but unspent": float(arm.cost.forfeited_sample_passes) if unit == "sample_passes" else 0.0,
    }


def progress(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the best validation accuracy so far of the arms that searched."""
    searches = {name: _search(view, name) for name in in_order(document)}
    searched = {name: trials for name, trials in searches.items() if trials}
    if not searched:
        return
    title = "Best validation accuracy so far against sample passes"
    if all(t.score is None for trials in searched.values() for t in trials):
        yield Remark("best-so-far", title, "No search trial ended with an accuracy.")
        return
    if all(len(trials) == 1 for trials in searched.values()):
        yield Remark("best-so-far", title, "Each search has one trial: there is no progress to draw.")
        return
    absent = [name for name in searches if name not in searched]
    is_cut = any(len(trials) > plots.MOST_DOTS for trials in searched.values())
    cut = f"; of more there are about {plots.MOST_DOTS} at equal distances, the line has all" if is_cut else ""
    yield Picture(
        "best-so-far",
        title,
        "The colored line is the arm of the panel, gray lines are the others. Each arm was searched once: there is no "
        f"band. Dots are finished trials, including failed ones{cut}. The dotted line is the limit of sample "
        "passes, if there is one; retraining takes what the search leaves."
        + (f" Arms without a search: {', '.join(absent)}." if absent else ""),
        f"{counted([1] * len(searched), 'search', 'searches')} per arm, trials in each panel",
        "trials.csv, phase search",
        plots.figure_best_so_far(
            [_search_curve(name, document.arms[name].role, trials) for name, trials in searched.items()],
            budget=document.budget.passes,
        ),
    )


def _search(view: ReportView, arm: str) -> list[Trial]:
    trials = [trial for trial in view.trials if (trial.arm, trial.phase) == (arm, SEARCH) and trial.ended]
    return sorted(trials, key=lambda trial: trial.number)


def _search_curve(name: str, role: str, trials: Sequence[Trial]) -> plots.Curve:
    scores = [t.score if t.state == "complete" and t.score is not None else float("nan") for t in trials]
    curve = best_so_far([trial.sample_passes for trial in trials], scores)
    return plots.Curve(name, role, tuple(curve.cost), tuple(curve.best), note=count_of(len(trials), "trial"))


def convergence(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the learning curves of the retrained models."""
    curves = [
        curve
        for name, arm in in_order(document).items()
        if (curve := _training_curve(view, name, arm.role)) is not None
    ]
    if not curves:
        return
    title = "Convergence of the retrained models"
    if all(len(curve.x) == 1 for curve in curves):
        yield Remark("convergence", title, "The models were trained for one epoch: there is no curve to draw.")
        return
    yield Picture(
        "convergence",
        title,
        "Validation accuracy after each epoch. The line is the mean over seeds, the band their range; gray lines are "
        "the means of the other arms. A dotted line marks where an arm switches from learning its structure to "
        "fine-tuning. The vertical axis may cut off the first epochs.",
        "n = seeds, in each panel",
        "the store, epochs of the retrained trials",
        plots.figure_convergence(curves),
    )


def _training_curve(view: ReportView, name: str, role: str) -> plots.Curve | None:
    models = view.models(name)
    by_epoch: dict[int, list[float]] = {}
    for trial in models:
        for record in view.epochs_of(trial):
            if record.get("validation_accuracy") is not None:
                by_epoch.setdefault(int(record["epoch"]) + 1, []).append(float(record["validation_accuracy"]))
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    stages = [(int(record["epoch"]) + 1, record.get("stage")) for record in view.epochs_of(models[0])]
    # The line lies between the last epoch of a stage and the first of the next.
    marks = [(a[0] + b[0]) / 2 for a, b in pairwise(stages) if a[1] != b[1]]
    return plots.Curve(
        name, role, tuple(map(float, epochs)), tuple(sum(seeds) / len(seeds) for seeds in values),
        tuple(map(min, values)), tuple(map(max, values)), f"n = {len(models)}", tuple(marks),
    )  # fmt: skip
