"""A comparison as text: its verdict, first in one word, and its tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nas_blockout.serialization import count_of
from nas_blockout.statistics import significance
from services.analysis.comparison import ArmResult, ComparisonDocument, asked, best_of
from services.analysis.recommendation import recommendation_rows
from services.analysis.seed_metrics import Accuracy, PairResult

Answer = Literal["yes", "no", "not shown"]
_NUMBERS = ("no", "one", "two")
_UNEVEN = 0.001
_MOST_NAMED = 3  # of the arms in a column of a table


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a study shows.

    Args:
        answer: Whether its question is answered with yes, no, or not at all.
        headline: The answer with the one reason for it, without a full stop.
        numbers: What it rests on, each without a full stop.
    """

    answer: Answer
    headline: str
    numbers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The verdict as one sentence."""
        return "; ".join([self.headline, *self.numbers]) + "."


def sentence(document: ComparisonDocument) -> str:
    """Return the verdict of a study as one sentence."""
    return verdict_of(document).text


def verdict_of(document: ComparisonDocument) -> Verdict:
    """Return whether a study answers its question, why, and the numbers: means, differences, what could be detected.

    The question of a study is whether learned structure helps, or a policy that reads the image where that is what is
    learned; of one that learns none, whether its best arm is best.
    """
    learned = [name for name, arm in document.arms.items() if arm.role == "learned"]
    best = best_of(document)
    if learned:
        answer, headline = _headline([_structure_helps(document, name) for name in learned], _what_learns(document))
    else:
        answer, headline = _best_is_best(document, best)
    said = document.reason is not None and document.reason in headline
    return Verdict(answer, headline, tuple(_numbers(document, learned, best, without_reason=said)))


def arm_verdict(document: ComparisonDocument, name: str) -> str:
    """Return what a study shows of one arm, in a few words: whether it is the one to ship, and its differences."""
    parts = ["to ship"] if document.shipped is not None and document.shipped.arm == name else []
    if (nothing := _nothing_compared(document, name)) is not None:
        return "; ".join([*parts, nothing])
    pairs = [_relative_to(pair, name) for pair in _pairs_of(document, name)]
    outcomes = {"better": "better than", "worse": "worse than", "no difference shown": "no difference shown to"}
    for outcome, words in outcomes.items():
        if others := [other for other, _, found in pairs if found == outcome]:
            parts.append(f"{words} {_listed(others) if len(others) <= _MOST_NAMED else f'{len(others)} arms'}")
    return "; ".join(parts)


def _what_learns(document: ComparisonDocument) -> str:
    methods = {
        (arm.settings.get("method") or {}).get("name") for arm in document.arms.values() if arm.role == "learned"
    }
    return "a policy that reads the image" if methods == {"blockdrop"} else "learned structure"


def _headline(found: Sequence[tuple[Answer, str]], what: str) -> tuple[Answer, str]:
    answers = {answer for answer, _ in found}
    answer: Answer = "yes" if "yes" in answers else "no" if answers == {"no"} else "not shown"
    words = {
        "yes": f"Yes, {what} helps",
        "no": f"No, {what} does not help",
        "not shown": f"Not shown that {what} helps",
    }
    reasons = dict.fromkeys(reason for given, reason in found if given == answer)
    return answer, f"{words[answer]}: {', and '.join(reasons)}"


def _structure_helps(document: ComparisonDocument, name: str) -> tuple[Answer, str]:
    """Return whether an arm is better than all placebos and ablations, and the one reason."""
    # Better than a baseline is not enough: the gain may come from what a placebo or an ablation has too.
    roles = {other: arm.role for other, arm in document.arms.items()}
    rivals = [other for other, role in roles.items() if role in ("placebo", "ablation")]
    verdicts = {_relative_to(pair, name)[0]: _relative_to(pair, name) for pair in _pairs_of(document, name)}
    structure = document.arms[name].structure
    branches = f", and {structure.unbranched}" if structure is not None and structure.unbranched else ""
    if (paths := document.arms[name].paths) is not None and paths.unread:
        branches = f", and {name} {paths.unread}"
    if (nothing := _nothing_compared(document, name)) is not None:
        return "not shown", nothing + branches
    if "placebo" not in roles.values():
        return "not shown", f"the study has no placebo{branches}"
    worse = [
        f"{other} by {100 * abs(verdicts[other][1]):.2f} points" for other in rivals if _is(verdicts, other, "worse")
    ]
    if worse:
        return "no", f"{name} is worse than {_listed(worse)}{branches}"
    if all(_is(verdicts, other, "better") for other in rivals):
        return "yes", f"{name} is better than every placebo and ablation ({', '.join(rivals)}){branches}"
    undecided = [other for other in rivals if _is(verdicts, other, "no difference shown")]
    if undecided:
        return "not shown", f"no difference shown between {name} and {_listed(undecided)}{branches}"
    untested = [other for other in rivals if other not in verdicts]
    return "not shown", f"{name} could not be compared with {_listed(untested)}{branches}"


def _is(verdicts: Mapping[str, tuple[str, float, str]], other: str, outcome: str) -> bool:
    return other in verdicts and verdicts[other][2] == outcome


def _nothing_compared(document: ComparisonDocument, name: str) -> str | None:
    """Return why the pairs of an arm can show nothing, or None if they can."""
    pairs = _pairs_of(document, name)
    if not pairs:
        return document.reason or "no two arms could be compared"
    return _too_few(pairs)


def _too_few(pairs: Sequence[PairResult]) -> str | None:
    most = max(pair.seeds for pair in pairs)
    if most >= significance.FEWEST_SEEDS:
        return None
    return (
        f"{_NUMBERS[most]} seed{'s' * (most > 1)} can show nothing, a verdict needs {significance.FEWEST_SEEDS} or more"
    )


def _best_is_best(document: ComparisonDocument, best: str | None) -> tuple[Answer, str]:
    if best is None:
        return "not shown", f"Not shown which arm is best: {document.reason}"
    if (nothing := _nothing_compared(document, best)) is not None:
        return "not shown", f"Not shown which arm is best: {nothing}"
    pairs = [_relative_to(pair, best) for pair in _pairs_of(document, best)]
    undecided = [other for other, _, outcome in pairs if outcome != "better"]
    if undecided or len(pairs) < len(document.arms) - 1:
        untested = [name for name in document.arms if name not in {best, *(other for other, *_ in pairs)}]
        reason = (
            f"no difference shown between {best} and {_listed(undecided)}"
            if undecided
            else f"{best} could not be compared with {_listed(untested)}"
        )
        return "not shown", f"Not shown that {best} is the best arm: {reason}"
    return "yes", f"Yes, {best} is the best arm: better than {_listed(other for other, *_ in pairs)}"


def _numbers(
    document: ComparisonDocument, learned: Sequence[str], best: str | None, *, without_reason: bool
) -> list[str]:
    parts = []
    if document.ranking is not None:
        means = {name: _mean_over_ranking_seeds(document, name) for name in document.ranking}
        parts.append(
            f"by mean test {document.metric_words}: " + ", ".join(f"{name} {mean:.2%}" for name, mean in means.items())
        )
    elif not without_reason:
        parts.append(f"no ranking, because {document.reason}")
    if document.folds_text is not None:
        parts.append(document.folds_text)
    told: set[str] = set()
    for name in dict.fromkeys([*learned, *([best] if best is not None else [])]):
        if text := _findings(document, name, without=told):
            parts.append(text)
        told.add(name)
    parts += [
        f"{name}: {arm.structure.summary}"
        for name, arm in document.arms.items()
        if arm.role == "learned" and arm.structure is not None
    ]
    parts += [
        f"{name}: {arm.memberships.summary}"
        for name, arm in document.arms.items()
        if arm.role == "learned" and arm.memberships is not None
    ]
    parts += [
        f"{name} {arm.paths.summary}"
        for name, arm in document.arms.items()
        if arm.role == "learned" and arm.paths is not None
    ]
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
    return parts


def ship_heading(document: ComparisonDocument) -> str:
    """Return which model to ship, in a few words, or that there is none."""
    found = document.shipped
    if found is not None:
        return f"Ship {found.arm}"
    return f"No model to ship: {document.reason or 'no arm has a retrained model'}"


def ship_rows(document: ComparisonDocument) -> list[tuple[str, str]]:
    """Return the recommended model as pairs of a label and a text; none without one."""
    return recommendation_rows(document.shipped) if document.shipped is not None else []


def corruption_errors(means: Mapping[str, float]) -> str:
    """Return the mean error of every arm on corrupted test images as text, the lowest first."""
    lowest_first = sorted(means, key=lambda name: (means[name], name))
    return "mean error on corrupted images: " + ", ".join(f"{name} {means[name]:.2%}" for name in lowest_first)


BALANCED_COLUMN = "balanced %"
ARM_COLUMNS = ("arm", "test %, 95% interval", "validation %", "MACs", "parameters", "passes", "seconds", "failed")
PAIR_COLUMNS = ("pair", "points", "95% interval", "Holm", "detectable", "verdict")


def arm_rows(document: ComparisonDocument) -> list[tuple[str, ...]]:
    """Return the table of arms as texts under `ARM_COLUMNS`, best first if they are ranked."""
    return [arm_row(name, document.arms[name]) for name in document.ranking or document.arms]


def arm_table(document: ComparisonDocument) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the columns and rows of the table of arms, with the balanced accuracy where it says something else.

    That is where the study goes by it, or where the test images are so unevenly divided among the classes, and the
    models so uneven, that it differs from the accuracy by a tenth of a point or more.
    """
    rows, names = arm_rows(document), [*(document.ranking or document.arms)]
    if not _is_uneven(document):
        return ARM_COLUMNS, rows
    balanced = [document.arms[name].test_balanced_accuracy for name in names]
    columns = (*ARM_COLUMNS[:2], BALANCED_COLUMN, *ARM_COLUMNS[2:])
    return columns, [
        (*row[:2], _percent(each) if each else "-", *row[2:]) for row, each in zip(rows, balanced, strict=True)
    ]


def _is_uneven(document: ComparisonDocument) -> bool:
    gaps = [
        abs(arm.test_accuracy.mean - arm.test_balanced_accuracy.mean)
        for arm in document.arms.values()
        if arm.test_accuracy is not None and arm.test_balanced_accuracy is not None
    ]
    return document.metric == "balanced_accuracy" or max(gaps, default=0.0) >= _UNEVEN


def pair_rows(document: ComparisonDocument) -> list[tuple[str, ...]]:
    """Return the pairs that readers ask about as texts under `PAIR_COLUMNS`; differences in points."""
    return [
        (
            f"{pair.a} - {pair.b}",
            f"{100 * pair.difference:+.2f}",
            f"{100 * pair.ci95[0]:+.2f} .. {100 * pair.ci95[1]:+.2f}" if pair.ci95 else "-",
            significance.p_text(pair.p_holm),
            f"{100 * effect:.2f}" if (effect := _sized(pair)) is not None else "-",
            pair.verdict,
        )
        for pair in asked(document)
    ]


def _mean_over_ranking_seeds(document: ComparisonDocument, name: str) -> float:
    # An arm may have further seeds, which the others lack; the ranking does not count them, nor does its text.
    accuracy = document.test_of(name)
    assert accuracy is not None, "a ranked arm has test accuracies"
    return sum(accuracy.by_seed[seed] for seed in document.ranking_seeds) / len(document.ranking_seeds)


def _relative_to(pair: PairResult, name: str) -> tuple[str, float, str]:
    """Return the other arm, the difference and the verdict from the point of view of `name`."""
    if pair.a == name:
        return pair.b, pair.difference, pair.verdict
    return pair.a, -pair.difference, {"better": "worse", "worse": "better"}.get(pair.verdict, pair.verdict)


def _findings(document: ComparisonDocument, name: str, *, without: Iterable[str] = ()) -> str | None:
    """Return what the pairs of an arm show, but those with arms that were told before."""
    pairs = [pair for pair in _pairs_of(document, name) if _relative_to(pair, name)[0] not in without]
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
    return text


def _detectable(pairs: Sequence[PairResult]) -> str:
    if _too_few(pairs) is not None:
        return ""  # the headline says that nothing could have been
    effects = sorted(100 * effect for pair in pairs if (effect := _sized(pair)) is not None)
    if not effects:
        return " (with these seeds, no difference of any size could have been shown)"
    counts = sorted({pair.seeds for pair in pairs})
    seeds = count_of(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    about = f"{effects[0]:.2f}" if len(effects) == 1 else f"{effects[0]:.2f} to {effects[-1]:.2f}"
    return f", where {seeds} could only have shown differences of about {about} points or more"


def _sized(pair: PairResult) -> float | None:
    """Return the smallest difference that would have been shown, or None if none between accuracies, at most 1, was."""
    effect = pair.smallest_effect
    return effect if effect is not None and effect < 1 and pair.seeds >= significance.FEWEST_SEEDS else None


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


def note_rows(document: ComparisonDocument) -> list[tuple[str, str]]:
    """Return what trials say of themselves: each note once, after the arms that have it."""
    found: dict[str, list[str]] = {}
    for name, arm in document.arms.items():
        for note in arm.notes:
            found.setdefault(note, []).append(name)
    return [("all arms" if len(arms) == len(document.arms) else ", ".join(arms), note) for note, arms in found.items()]


def _percent(accuracy: Accuracy) -> str:
    mean = f"{100 * accuracy.mean:.2f}"
    if accuracy.ci95 is None:
        return mean
    return f"{mean} ({100 * accuracy.ci95[0]:.2f} .. {100 * accuracy.ci95[1]:.2f})"
