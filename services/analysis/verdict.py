"""A comparison as text: its verdict in one sentence, and its tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from nas_blockout.statistics import significance
from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.seed_metrics import Accuracy, PairResult


def sentence(document: ComparisonDocument) -> str:
    """Return one sentence: what the study shows, what it does not show, and what it could have shown."""
    parts = []
    if document.ranking is not None:
        means = {name: _mean_on(document, name) for name in document.ranking}
        parts.append("by mean test accuracy: " + ", ".join(f"{name} {mean:.2%}" for name, mean in means.items()))
    else:
        parts.append(f"no ranking, because {document.reason}")
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
        parts.append(f"the study was extended {times} after its result was known, so that p-values are too small")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def corruption_errors(means: Mapping[str, float]) -> str:
    """Return the mean error of every arm on corrupted test images as text, the lowest first."""
    least_first = sorted(means, key=lambda name: (means[name], name))
    return "mean error on corrupted images: " + ", ".join(f"{name} {means[name]:.2%}" for name in least_first)


ARM_COLUMNS = ("arm", "test %, 95% interval", "validation %", "MACs", "parameters", "passes", "seconds", "failed")
PAIR_COLUMNS = ("pair", "points", "95% interval", "Holm", "could show", "verdict")


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


def _mean_on(document: ComparisonDocument, name: str) -> float:
    accuracy = document.arms[name].test_accuracy
    assert accuracy is not None, "a ranked arm has test accuracies"
    return sum(accuracy.by_seed[seed] for seed in document.ranking_seeds) / len(document.ranking_seeds)


def _seen_from(pair: PairResult, name: str) -> tuple[str, float, str]:
    """Return the other arm, the difference and the verdict as seen from one of the two."""
    if pair.a == name:
        return pair.b, pair.difference, pair.verdict
    return pair.a, -pair.difference, {"better": "worse", "worse": "better"}.get(pair.verdict, pair.verdict)


def _findings(document: ComparisonDocument, name: str) -> str | None:
    pairs = _pairs_of(document, name)
    if not pairs:
        return None
    parts = []
    for outcome in ("better", "worse"):
        shown = [(pair, *_seen_from(pair, name)) for pair in pairs if _seen_from(pair, name)[2] == outcome]
        if shown:
            texts = [
                f"{other} by {100 * abs(gap):.2f} points ({significance.p_text(pair.p_holm)})"
                for pair, other, gap, _ in shown
            ]
            parts.append(f"{outcome} than {_listed(texts)}")
    text = f"{name} is {' and '.join(parts)}" if parts else ""
    silent = [pair for pair in pairs if pair.verdict == "no difference shown"]
    if silent:
        others = _listed(_seen_from(pair, name)[0] for pair in silent)
        text += f"{', ' if text else ''}no difference shown between {name} and {others}{_could_show(silent)}"
    return text + _claim(document, name)


def _could_show(pairs: Sequence[PairResult]) -> str:
    effects = sorted(100 * pair.smallest_effect for pair in pairs if pair.smallest_effect is not None)
    if not effects:
        return " (the seeds could have shown no difference of any size)"
    counts = sorted({pair.seeds for pair in pairs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    about = f"{effects[0]:.2f}" if len(effects) == 1 else f"{effects[0]:.2f} to {effects[-1]:.2f}"
    return f", where {seeds} seeds could have shown no less than about {about} points"


def _claim(document: ComparisonDocument, name: str) -> str:
    """Return what follows for learned structure: it helps if the arm beats all placebos and ablations."""
    roles = {other: arm.role for other, arm in document.arms.items()}
    if roles[name] != "learned":
        return ""
    if "placebo" not in roles.values():
        return ", and without a placebo nothing is shown about its structure"
    beaten = {_seen_from(pair, name)[0] for pair in _pairs_of(document, name) if _seen_from(pair, name)[2] == "better"}
    if all(other in beaten for other, role in roles.items() if role in ("placebo", "ablation")):
        return ", so that its learned structure is shown to help"
    return ", so that its learned structure is not shown to help"


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
