"""Which model of a study to ship: one recommendation, why, and what is not known about it.

Validation accuracy names two models: the most accurate, and the smallest within the margin of it. One equivalence test
on the test accuracies, whose margin the study fixed, decides between the two; nothing else reads a test accuracy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, FiniteFloat

from nas_blockout.serialization import count_of
from nas_blockout.statistics import significance
from nas_blockout.statistics.equivalence import equivalence
from services.analysis.latency import Latency, spread_text
from services.analysis.seed_metrics import Accuracy, Count, PairResult, Share, Strict
from services.study_config.search_options import Metric

_ROUNDING = 1e-9


class EquivalenceResult(Strict):
    """Test accuracy of the smaller model minus that of the larger one, held against the margin of the study."""

    smaller: str
    larger: str
    margin: Share
    seeds: Count
    difference: FiniteFloat
    ci90: tuple[FiniteFloat, FiniteFloat] | None
    p_not_worse: Share = Field(description="p of: the smaller one is worse by the margin or more.")
    p_not_better: Share = Field(description="p of: the smaller one is better by the margin or more.")
    equivalent: bool = Field(description="Whether both p are at most .05.")
    not_worse: bool = Field(description="Whether the first is; it decides the recommendation.")


class Recommendation(Strict):
    """The model to ship: ``test_accuracy`` is a mean over seeds, of ``metric``; the costs are of the exported model."""

    arm: str
    model: str = Field(description="Folder of the exported model, from the folder of the study.")
    seed: int | None
    why: str
    test_accuracy: Share | None
    ci95: tuple[Share, Share] | None
    seeds: Count
    macs: Count | None
    parameters: Count | None
    latency_ms: Latency | None
    equivalence: EquivalenceResult | None = Field(description="The test of the smaller model, if there is one.")
    not_known: list[str]
    metric: Metric = Field("accuracy", description="What its accuracy is.")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of the model of an arm."""

    name: str
    validation: Accuracy
    test: Accuracy
    seed: int | None
    macs: int | None
    parameters: int | None
    latency_ms: Latency | None
    missing_seeds: tuple[int, ...] = ()

    @property
    def cost(self) -> tuple[float, float]:
        """What a smaller model has less of: MACs, of equals parameters; unknown is most."""
        unknown = float("inf")
        return unknown if self.macs is None else self.macs, unknown if self.parameters is None else self.parameters


def recommend(
    candidates: Mapping[str, Candidate],
    pairs: list[PairResult],
    *,
    margin: float,
    unlike: str | None = None,
    metric: Metric = "accuracy",
    overlap: float = 0.0,
) -> Recommendation | None:
    """Return the model to ship, or None if no arm has one.

    Args:
        candidates: Of the arms with a retrained model, by name, in the order of the study.
        pairs: The tested pairs, for what is not known.
        margin: Largest difference in accuracy at which a smaller model counts as equally good.
        unlike: Why the arms are not ranked, or None.
        metric: What the accuracies of the candidates are.
        overlap: Of the trainings behind the seeds, as in `significance.inflation`.
    """
    if not candidates:
        return None
    means = _validation_means(candidates)
    best = max(candidates.values(), key=lambda one: (means[one.name], *(-part for part in one.cost)))
    lowest = means[best.name] - margin - _ROUNDING
    near = [
        one
        for one in candidates.values()
        if best.macs is not None and one.cost[0] < best.macs and means[one.name] >= lowest
    ]
    smaller = min(near, key=lambda one: one.cost, default=None)
    tested = _tested(smaller, best, margin, overlap) if smaller is not None else None
    chosen = smaller if smaller is not None and tested is not None and tested.not_worse else best
    return Recommendation(
        arm=chosen.name,
        model=f"models/{chosen.name}",
        seed=chosen.seed,
        why=_why(chosen, best, means, tested, margin, candidates, words=metric.replace("_", " ")),
        test_accuracy=chosen.test.mean,
        ci95=chosen.test.ci95,
        seeds=len(chosen.test.per_seed),
        macs=chosen.macs,
        parameters=chosen.parameters,
        latency_ms=chosen.latency_ms,
        equivalence=tested,
        not_known=_not_known(chosen, candidates, pairs, tested, unlike),
        metric=metric,
    )


def recommendation_rows(found: Recommendation) -> list[tuple[str, str]]:
    """Return a recommendation as pairs of a label and a text."""
    costs = [
        f"{found.macs:,} MACs an image" if found.macs is not None else "",
        f"{found.parameters:,} parameters" if found.parameters is not None else "",
        f"{spread_text(one.batch_1, one.batch_1_quartiles)} ms for one image" if (one := found.latency_ms) else "",
    ]
    seeds = f"{found.seeds} seed{'s' * (found.seeds != 1)}"
    interval = f", 95% interval {found.ci95[0]:.2%} to {found.ci95[1]:.2%}" if found.ci95 else ""
    accuracy = f"{found.test_accuracy:.2%}{interval}, mean of {seeds}" if found.test_accuracy is not None else "-"
    return [
        ("model", found.model + (f" (seed {found.seed})" if found.seed is not None else "")),
        ("why", found.why),
        (f"test {found.metric.replace('_', ' ')}", accuracy),
        ("cost", ", ".join(filter(None, costs)) or "-"),
        ("not known", "; ".join(found.not_known) or "nothing beyond the limits on its card"),
    ]


def points(share: float) -> str:
    """Return a share as percentage points, without digits that say nothing: ``0.5 points``."""
    return f"{100 * share:.3g} points"


def equivalence_text(tested: EquivalenceResult) -> str:
    """Return the numbers of an equivalence test: the difference, its 90% interval, p and the margin."""
    interval = f", 90% interval {100 * tested.ci90[0]:+.2f} to {100 * tested.ci90[1]:+.2f}" if tested.ci90 else ""
    # Equivalence needs both tests; that the smaller one is not worse needs the first alone.
    p = max(tested.p_not_worse, tested.p_not_better) if tested.equivalent else tested.p_not_worse
    return f"{100 * tested.difference:+.2f} points{interval}, {significance.p_text(p)}"


def _validation_means(candidates: Mapping[str, Candidate]) -> dict[str, float]:
    """Return mean validation accuracies over the seeds that all have, or over each one's own if there are none."""
    shared = set.intersection(*(set(one.validation.by_seed) for one in candidates.values()))
    return {
        name: sum(one.validation.by_seed[seed] for seed in shared) / len(shared) if shared else one.validation.mean
        for name, one in candidates.items()
    }


def _tested(smaller: Candidate, best: Candidate, margin: float, overlap: float) -> EquivalenceResult | None:
    a, b = smaller.test.by_seed, best.test.by_seed
    if not a.keys() & b.keys():
        return None
    found = equivalence(a, b, margin=margin, overlap=overlap)
    return EquivalenceResult(
        smaller=smaller.name,
        larger=best.name,
        margin=margin,
        seeds=found.n,
        difference=found.difference,
        ci90=found.ci90,
        p_not_worse=found.p_not_worse,
        p_not_better=found.p_not_better,
        equivalent=found.is_equivalent,
        not_worse=found.is_not_worse,
    )


def _why(
    chosen: Candidate,
    best: Candidate,
    means: Mapping[str, float],
    tested: EquivalenceResult | None,
    margin: float,
    candidates: Mapping[str, Candidate],
    *,
    words: str,
) -> str:
    if len(candidates) == 1:
        return "the only arm with a retrained model"
    if tested is not None and chosen is not best:
        shown = "equal to" if tested.equivalent else "not worse than"
        return (
            f"{_share_of(chosen, best)} of the MACs of {best.name}, which has the highest validation {words} "
            f"({means[best.name]:.2%}), and shown to be {shown} it within {points(margin)} of test {words} "
            f"({equivalence_text(tested)})"
        )
    ties = sum(value == means[best.name] for value in means.values()) > 1
    text = f"highest validation {words} of {count_of(len(candidates), 'arm')} ({means[best.name]:.2%})"
    if ties:
        text += ", of equals the smallest"
    if tested is None and best.macs is not None:
        text += f"; no smaller model is within {points(margin)} of it on validation data"
    return text


def _share_of(smaller: Candidate, larger: Candidate) -> str:
    assert smaller.macs is not None, "a smaller model has known MACs"
    return f"{smaller.macs / larger.macs:.0%}" if larger.macs else f"{smaller.macs:,}"


def _not_known(
    chosen: Candidate,
    candidates: Mapping[str, Candidate],
    pairs: list[PairResult],
    tested: EquivalenceResult | None,
    unlike: str | None,
) -> list[str]:
    found = []
    if unlike is not None and len(candidates) > 1:
        found.append(f"which arm is better, since they are not ranked: {unlike}")
    if tested is not None and not tested.not_worse:
        share = _share_of(candidates[tested.smaller], candidates[tested.larger])
        found.append(
            f"whether {tested.smaller}, with {share} of the MACs, is as good within {points(tested.margin)}: "
            f"not shown ({equivalence_text(tested)})"
        )
    found += _against_others(chosen, candidates, pairs)
    if chosen.test.ci95 is None:
        found.append("how much its accuracy varies from training to training: one seed, or seeds without a spread")
    if chosen.missing_seeds:
        found.append(f"its accuracy for seeds {', '.join(map(str, chosen.missing_seeds))}, which gave no model")
    if chosen.latency_ms is None:
        found.append("its latency, which was not measured")
    return found


def _against_others(chosen: Candidate, candidates: Mapping[str, Candidate], pairs: list[PairResult]) -> list[str]:
    worse, undecided = [], []
    for pair in pairs:
        if chosen.name not in (pair.a, pair.b):
            continue
        other = pair.b if pair.a == chosen.name else pair.a
        losing = "worse" if pair.a == chosen.name else "better"
        if pair.verdict == losing:
            worse.append(other)
        elif pair.verdict == "no difference shown" and other in candidates:
            undecided.append(other)
    texts = []
    if worse:
        better = f"{', '.join(worse)} {'is' if len(worse) == 1 else 'are'} shown to be better on the test images"
        texts.append(f"whether it is the best choice: {better}, by which nothing is selected")
    if undecided:
        texts.append(f"whether it is more accurate than {', '.join(undecided)}: no difference shown")
    return texts
