"""The tables of results: arms, seeds, differences, corrupted images."""

from collections.abc import Iterator, Sequence

from nas_blockout.statistics import significance
from services.analysis.comparison import ComparisonDocument, asked
from services.analysis.latency import spread_text
from services.analysis.robustness import ArmRobustness
from services.analysis.seed_metrics import OverSeeds, PairResult
from services.report.tables.report_table import Cell, Column, Table, amount, count, table
from services.report.view import ABSENT, in_order, interval, percent

_VERDICTS = {"better": "keep shown", "worse": "keep lost"}


def arms_table(document: ComparisonDocument) -> Table:
    """Return the arms with accuracy, size and cost, best first if they are ranked."""
    metric = document.metric_words
    shipped = document.shipped.arm if document.shipped is not None else None
    order = (
        f"Sorted by mean test {metric}, best first."
        if document.ranking
        else "In the order of the study file; there is no ranking."
    )
    return table(
        "arms",
        "Arms",
        f"{order} Accuracies in %, mean over seeds. Parameters, multiply-accumulates (MACs) and latency are those of "
        "the exported model. Latency is the median over rounds that time every model in turn on one thread, in "
        "brackets the middle half of the rounds: models whose brackets overlap are not told apart. Sample passes are "
        "images times epochs, and a third of those that pass forward alone for the statistics of evaluation.",
        [
            Column("arm", "role"),
            Column(f"test {metric}", "95% interval", unit="%"),
            Column(f"validation {metric}", unit="%"),
            "parameters",
            "MACs",
            Column("latency in ms, batch of 1", "batch of 256"),
            Column("search passes", "seconds"),
            Column("retrain passes", "seconds"),
            "overhead, seconds",
            Column("trials", "failed, pruned"),
        ],
        [_arm_row(document, name, is_shipped=name == shipped) for name in in_order(document)],
        style="arms",
    )


def _arm_row(document: ComparisonDocument, name: str, *, is_shipped: bool) -> list[Cell]:
    arm, test, validation = document.arms[name], document.test_of(name), document.validation_of(name)
    cost, times = arm.cost, arm.latency_ms
    described = f"{arm.role}: {arm.description}" if arm.description else arm.role
    return [
        Cell(name, small=described, role=arm.role, badge="ship" if is_shipped else ""),
        accuracy_cell(test, strong=True) if test else Cell(ABSENT, small="no retrained model", style="strong"),
        Cell(*_percent(validation.mean)) if validation else Cell(ABSENT),
        count(arm.parameters),
        count(arm.macs),
        Cell(
            spread_text(times.batch_1, times.batch_1_quartiles), times.batch_1,
            spread_text(times.batch_256, times.batch_256_quartiles), times.batch_256,
        ) if times else Cell(ABSENT, small=ABSENT),
        _spent(cost.search.sample_passes, cost.search.seconds),
        _spent(cost.retrain.sample_passes, cost.retrain.seconds),
        amount(cost.overhead_seconds),
        Cell(
            str(arm.trials), arm.trials,
            f"{arm.failed} failed" + (f", {arm.pruned} pruned" if arm.pruned else ""),
        ),
    ]  # fmt: skip


def _spent(passes: int, seconds: float) -> Cell:
    return Cell(f"{passes:,}", passes, f"{seconds:,.1f} s", seconds)


def _percent(value: float) -> tuple[str, float]:
    return percent(value), 100 * value


def accuracy_cell(mean: OverSeeds | None, *, strong: bool = False) -> Cell:
    """Return a cell with a mean over seeds in percent, its interval below."""
    if mean is None:
        return Cell(ABSENT)
    ends = mean.ci95 and (100 * mean.ci95[0], 100 * mean.ci95[1])
    return Cell(*_percent(mean.mean), interval(mean), ends, "strong" if strong else "")


def seeds_table(document: ComparisonDocument) -> Table:
    """Return by arm its metric on test images for each seed."""
    metric = document.metric_words
    by_arm = {name: test.by_seed if (test := document.test_of(name)) else {} for name in in_order(document)}
    seeds = sorted({seed for values in by_arm.values() for seed in values})
    return table(
        "accuracy-by-seed",
        f"Test {metric} by seed",
        f"Test {metric} in %, by seed. Each retrained model was evaluated on the test images once.",
        [Column("arm"), *(Column(f"seed {seed}", unit="%") for seed in seeds)],
        [
            [Cell(name), *(Cell(*_percent(values[seed])) if seed in values else Cell(ABSENT) for seed in seeds)]
            for name, values in by_arm.items()
        ],
    )


def pairs_tables(document: ComparisonDocument) -> Iterator[Table]:
    """Yield the pairs that readers ask about, if there are any."""
    if shown := asked(document):
        yield _pairs(
            shown,
            "differences",
            "Differences between arms",
            f"First arm minus second, in percentage points of test {document.metric_words}, over the seeds that both "
            "arms have. Shown are the pairs of arms that learn, of the best arm and of the recommended one; the "
            f"verdict follows from p after Holm's correction over all {len(document.pairs)} pairs (comparison.json). "
            '"Detectable" is the smallest true difference that this number of seeds would show in 4 of 5 studies.'
            + (f" Tested {document.folds_text}: trainings of folds share images." if document.folds_text else ""),
            of_one=True,
        )


def _pairs(shown: Sequence[PairResult], name: str, title: str, caption: str, *, of_one: bool) -> Table:
    """Return a table of pairs; p of one pair, without correction, only `of_one`."""
    columns = [
        Column("first arm"),
        Column("second arm", is_text=True),
        "points",
        Column("verdict", is_text=True),
        "95% interval",
        "seeds",
        *(("p",) if of_one else ()),
        *(("p, sign-flip test",) if of_one and _has_flips(shown) else ()),
        "p, Holm",
        "detectable",
    ]
    return table(name, title, caption, columns, [_pair_row(pair, of_one=of_one) for pair in shown], style="pairs")


def _has_flips(pairs: Sequence[PairResult]) -> bool:
    """Whether signs were flipped: of seeds that are folds they are not."""
    return any(pair.p_permutation is not None for pair in pairs)


def _pair_row(pair: PairResult, *, of_one: bool) -> list[Cell]:
    ends = pair.ci95
    return [
        Cell(pair.a),
        Cell(pair.b),
        Cell(points(pair.difference), 100 * pair.difference, style="strong"),
        Cell(pair.verdict, style=_VERDICTS.get(pair.verdict, "keep silent")),
        Cell(f"{points(ends[0])} to {points(ends[1])}", (100 * ends[0], 100 * ends[1])) if ends else Cell(ABSENT),
        count(pair.seeds),
        *((_p(pair.p),) if of_one else ()),
        *((_p(pair.p_permutation),) if of_one and pair.p_permutation is not None else ()),
        _p(pair.p_holm),
        amount(100 * pair.smallest_effect, ".2f") if pair.smallest_effect is not None else Cell(ABSENT),
    ]


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> Cell:
    return Cell(significance.p_text(value).removeprefix("p ").removeprefix("= "), value)


def corruption_tables(document: ComparisonDocument) -> Iterator[Table]:
    """Yield the errors of every arm on clean and on corrupted images, if models were tested on any."""
    robust = document.robustness
    if robust is None:
        return
    arms = {name: robust.arms[name] for name in in_order(document) if name in robust.arms}
    kinds = len(next(iter(arms.values())).by_kind) if arms else 0
    relative = (
        f'"Relative" is the error divided by that of {robust.baseline}, averaged over kinds. '
        if robust.baseline
        else ""
    )
    yield table(
        "corrupted",
        "Corrupted images",
        f"Error in % on {robust.images:,} test images, clean and under {kinds} kinds of corruption at severities "
        f'{", ".join(map(str, robust.severities))}. {relative}"Seconds" is the time spent corrupting and testing, '
        "which is not charged to any budget. Data: comparison.json, robustness.",
        [
            Column("arm"),
            Column("clean error", unit="%"),
            Column("mean corruption error", "95% interval", unit="%"),
            "relative",
            "seconds",
        ],
        [
            [
                Cell(name),
                Cell(*_percent(arm.clean_error)),
                accuracy_cell(arm.corruption_error, strong=True),
                amount(arm.relative, ".3f"),
                amount(arm.seconds),
            ]
            for name, arm in arms.items()
        ],
    )


def corruption_detail(document: ComparisonDocument) -> Iterator[Table]:
    """Yield errors by kind of corruption, and the differences of arms on corrupted images."""
    robust = document.robustness
    if robust is None:
        return
    arms = {name: robust.arms[name] for name in in_order(document) if name in robust.arms}
    yield table(
        "corruption-kinds",
        "Error by kind of corruption",
        "Mean error in % over severities and seeds, by kind of corruption. The lowest error in each row is bold.",
        [Column("kind"), *(Column(name, unit="%") for name in arms)],
        [_kind_row(kind, list(arms.values())) for kind in (next(iter(arms.values())).by_kind if arms else ())],
    )
    if robust.pairs:
        yield _pairs(
            robust.pairs,
            "differences-corrupted",
            "Differences on corrupted images",
            "First arm minus second, in percentage points of accuracy on corrupted images (1 minus the mean corruption "
            "error). The pairs are the same as for test accuracy, with Holm's correction over them.",
            of_one=False,
        )


def _kind_row(kind: str, arms: Sequence[ArmRobustness]) -> list[Cell]:
    shown = [_percent(arm.by_kind[kind]) for arm in arms]
    lowest = min((text for text, _ in shown), key=float)  # of the texts: errors that look equal are all marked
    return [
        Cell(kind.replace("_", " ")),
        *(Cell(text, value, style="strong" if text == lowest else "") for text, value in shown),
    ]
