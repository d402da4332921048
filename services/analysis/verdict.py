"""A comparison as text: its verdict in one sentence, and its tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from nas_blockout.statistics import significance
from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.seed_metrics import Accuracy, PairResult


def sentence(document: ComparisonDocument) -> str:
    """Return one sentence: what the study shows, what it does not, and what it could have detected."""
    parts = []
    if document.ranking is not None:
        means = {name: _mean_over_ranking_seeds(document, name) for name in document.ranking}
        parts.append("by mean test accuracy: " + ", ".join(f"{name} {mean:.2%}" for name, mean in means.items()))
    else:
        parts.append(f"no ranking, because {document.reason}")
    # The question of a study is whether learned structure helps; a study without it is told from its best arm.
    focus = [name for name, arm in document.arms.items() if arm.role == "learned"] or (
        document.ranking or list(document.arms)
    )[:1]
    parts += [text for name in focus if (text := _findings(document, name))] or ["no two arms could be compared"]
    parts += [
        f"{name} has no model for seed{'s' * (len(arm.missing_seeds) > 1)} {_listed(map(str, arm.missing_seeds))}"
        for name, arm in document.arms.items()
        if arm.missing_seeds and arm.test_accuracy is not None
    ]
    if document.robustness is not None:
        parts.append(corruption_errors({name: a.corruption_error.mean for name, a in document.robustness.arms.items()}))
    if document.extensions:
        times = "once" if document.extensions == 1 else f"{document.extensions} times"
        parts.append(f"the study was extended {times} after its result was known, so its p-values are too small")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def corruption_errors(means: Mapping[str, float]) -> str:
    """Return the mean error of every arm on corrupted test images as text, the lowest first."""
    lowest_first = sorted(means, key=lambda name: (means[name], name))
    return "mean error on corrupted images: " + ", ".join(f"{name} {means[name]:.2%}" for name in lowest_first)


ARM_COLUMNS = ("arm", "test %, 95% interval", "validation %", "MACs", "parameters", "passes", "seconds", "failed")
PAIR_COLUMNS = ("pair", "points", "95% interval", "Holm", "detectable", "verdict")


def arm_rows(document: ComparisonDocument) -> list[tuple[str, ...]]:
    """Return the table of arms as texts under `ARM_COLUMNS`, best first if they are ranked."""
    return [arm_row(name, document.arms[name]) for name in document.ranking or document.arms]


def pair_rows(document: ComparisonDocument) -> list[tuple[str, ...]]:
    """Return the table of pairs as texts under `PAIR_COLUMNS`; differences in points."""
    return [
        (
            f"{pair.a} - {pair.b}",
            f"{100 * pair.difference:+.2f}",
            f"{100 * pair.ci95[0]:+.2f} .. {100 * pair.ci95[1]:+.2f}" if pair.ci95 else "-",
            significance.p_text(pair.p_holm),
            f"{100 * pair.smallest_effect:.2f}" if pair.smallest_effect is not None else "-",
            pair.verdict,
        )
        for pair in document.pairs
    ]


def _mean_over_ranking_seeds(document: ComparisonDocument, name: str) -> float:
    # An arm may have further seeds, which the others lack; the ranking does not count them, nor does its text.
    accuracy = document.arms[name].test_accuracy
    assert accuracy is not None, "a ranked arm has test accuracies"
    return sum(accuracy.by_seed[seed] for seed in document.ranking_seeds) / len(document.ranking_seeds)


def _relative_to(pair: PairResult, name: str) -> tuple[str, float, str]:
    """Return the other arm, the difference and the verdict from the point of view of `name`."""
    if pair.a == name:
        return pair.b, pair.difference, pair.verdict
    return pair.a, -pair.difference, {"better": "worse", "worse": "better"}.get(pair.verdict, pair.verdict)


def _findings(document: ComparisonDocument, name: str) -> str | None:
    pairs = _pairs_of(document, name)
    if not pairs:
        return None
    parts = []
    for outcome in ("better", "worse"):
        shown = [(pair, *_relative_to(pair, name)) for pair in pairs if _relative_to(pair, name)[2] == outcome]
        if shown:
            texts = [
                f"{other} by {100 * abs(gap):.2f} points ({significance.p_text(pair.p_holm)})"
                for pair, other, gap, _ in shown
            ]
            parts.append(f"{outcome} than {_listed(texts)}")
    text = f"{name} is {' and '.join(parts)}" if parts else ""
    undecided = [pair for pair in pairs if pair.verdict == "no difference shown"]
    if undecided:
        others = _listed(_relative_to(pair, name)[0] for pair in undecided)
        text += f"{', ' if text else ''}no difference shown between {name} and {others}{_detectable(undecided)}"
    return text + _claim(document, name)


def _detectable(pairs: Sequence[PairResult]) -> str:
    effects = sorted(100 * pair.smallest_effect for pair in pairs if pair.smallest_effect is not None)
    if not effects:
        return " (with these seeds, no difference of any size could have been shown)"
    counts = sorted({pair.seeds for pair in pairs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    about = f"{effects[0]:.2f}" if len(effects) == 1 else f"{effects[0]:.2f} to {effects[-1]:.2f}"
    return f", where {seeds} seeds could only have shown differences of about {about} points or more"


def _claim(document: ComparisonDocument, name: str) -> str:
    """Return what follows for learned structure: it helps if the arm beats all placebos and ablations."""
    # Better than a baseline is not enough: the gain may come from what a placebo or an ablation has too.
    roles = {other: arm.role for other, arm in document.arms.items()}
    if roles[name] != "learned":
        return ""
    if "placebo" not in roles.values():
        return ", and without a placebo the study shows nothing about its learned structure"
    beaten = {
        _relative_to(pair, name)[0] for pair in _pairs_of(document, name) if _relative_to(pair, name)[2] == "better"
    }
    if all(other in beaten for other, role in roles.items() if role in ("placebo", "ablation")):
        return ", so its learned structure is shown to help"
    return ", so its learned structure is not shown to help"


def _pairs_of(document: ComparisonDocument, name: str) -> list[PairResult]:
    return [pair for pair in document.pairs if name in (pair.a, pair.b)]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def arm_row(name: str, arm: ArmResult) -> tuple[str, ...]:
    """Return one arm as texts under `ARM_COLUMNS`."""
    test, validation = arm.test_accuracy, arm.validation_accuracy
    return (
        name,
        _percent(test) if test else "-",
        f"{100 * validation.mean:.2f}" if validation else "-",
        f"{arm.macs:,}" if arm.macs is not None else "-",
        f"{arm.parameters:,}" if arm.parameters is not None else "-",
        f"{arm.cost.sample_passes:,}",
        f"{arm.cost.search.seconds + arm.cost.retrain.seconds + arm.cost.overhead_seconds:,.1f}",
        str(arm.failed),
    )


def _percent(accuracy: Accuracy) -> str:
    mean = f"{100 * accuracy.mean:.2f}"
    if accuracy.ci95 is None:
        return mean
    return f"{mean} ({100 * accuracy.ci95[0]:.2f} .. {100 * accuracy.ci95[1]:.2f})"
