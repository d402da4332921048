"""The comparison of the arms of a study as one document: comparison.json, which `compare` builds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from nas_blockout.statistics.significance import overlap_of_folds
from services.analysis.latency import Latency
from services.analysis.learned_paths import ArmPaths
from services.analysis.learned_structure import ArmMemberships, ArmStructure
from services.analysis.recommendation import Candidate, Recommendation, recommend
from services.analysis.robustness import RobustnessResult
from services.analysis.searches.pareto import Front
from services.analysis.searches.proxy_check import Ranking, RungRanking
from services.analysis.searches.search_progress import SearchProgress
from services.analysis.seed_metrics import Accuracy, Amount, ClassResult, Count, PairResult, Share, Strict
from services.analysis.usage import ArmUsage
from services.budget.accounting import End
from services.budget.limits import WORDS, Unit
from services.renamed_keys import upgraded_comparison
from services.study_config.schema import DEFAULT_MARGIN
from services.study_config.search_options import Metric

Role = Literal["learned", "placebo", "ablation", "baseline"]


class Spending(Strict):
    """What a phase cost."""

    sample_passes: Count = 0
    seconds: Amount = 0.0


class Cost(Strict):
    """What an arm spent: ``overhead_seconds`` are those of the optimizer and of deriving networks.

    ``forfeited_sample_passes`` were planned for trials that failed before they had used them; with trials that were
    stopped early, also what was left in the end and paid for no whole trial. ``stale`` is what retraining earlier
    winners cost before the study was extended, which the larger study would not have paid.
    """

    search: Spending
    retrain: Spending
    overhead_seconds: Amount
    forfeited_sample_passes: Count = 0
    stale: Spending = Spending()

    @property
    def sample_passes(self) -> int:
        """Sample passes of both phases."""
        return self.search.sample_passes + self.retrain.sample_passes

    @property
    def seconds(self) -> float:
        """Seconds of both phases, overhead included."""
        return self.search.seconds + self.retrain.seconds + self.overhead_seconds


class ArmResult(Strict):
    """Result of an arm: ``architecture``, ``parameters``, ``macs`` and latency are those of ``exported_seed``."""

    description: str = ""
    role: Role
    seeds_cover: Literal["retraining", "learning and retraining"] = Field(description="What a seed repeats.")
    trials: Count
    failed: Count
    pruned: Count
    replicates: Count = Field(0, description="Search trials whose architecture the arm had tried before.")
    infeasible: Count = Field(0, description="Proposals that exceeded a constraint: never trained, at no cost.")
    ended_by: End | None = Field(
        None,
        description="What ended its search: a limit, an exhausted space, failures in a row, nothing to match.",
    )
    missing_seeds: list[int] = Field(description="Seeds of the study that ended in no model.")
    cost: Cost
    validation_accuracy: Accuracy | None
    test_accuracy: Accuracy | None
    validation_balanced_accuracy: Accuracy | None = Field(None, description="Mean of the accuracies of the classes.")
    test_balanced_accuracy: Accuracy | None = Field(None, description="Mean of the accuracies of the classes.")
    classes: list[ClassResult] | None = Field(
        None, description="Test accuracy of every class, in the order of the data."
    )
    exported_seed: int | None
    parameters: Count | None
    macs: Count | None
    macs_per_seed: dict[str, Count]
    latency_ms: Latency | None
    search: SearchProgress | None = Field(None, description="How its search went on, if it tried more than one trial.")
    rungs: list[RungRanking] | None = Field(
        None,
        description="How its early rungs rank the trials that reached the end, if it stops trials early. Trials were "
        "chosen by their early score, so that the agreement over all of them would as a rule be higher.",
    )
    front: Front | None = Field(None, description="Pareto front of its search, where it had several objectives.")
    architecture: str | None
    structure: ArmStructure | None = Field(None, description="How far its networks branch, if they have groups.")
    memberships: ArmMemberships | None = Field(
        None, description="To which end its membership probabilities came, if it learned some."
    )
    notes: list[str] = Field(default_factory=list, description="What its trials say of themselves, each once.")
    usage: ArmUsage | None = Field(None, description="What its trainings took of the machine, if it was measured.")
    paths: ArmPaths | None = Field(None, description="Which blocks its networks keep, if they skip any.")
    settings: dict[str, Any]


class BudgetResult(Strict):
    """The budget of every arm, in the unit in which their spending is compared, and by how much it may differ."""

    unit: Unit = "sample_passes"
    per_arm: Count | Amount
    tolerance: Share
    limits: dict[Unit, Count | Amount] = Field(default_factory=dict, description="All limits; the first ends an arm.")

    @property
    def passes(self) -> float | None:
        """Sample passes that every arm may spend, or None if they are not limited."""
        return self.limits.get("sample_passes", self.per_arm if self.unit == "sample_passes" else None)

    @property
    def text(self) -> str:
        """The limits in words."""
        limits = self.limits or {self.unit: self.per_arm}
        return " or ".join(f"{limit:,.10g} {WORDS[unit]}" for unit, limit in limits.items())


class ComparisonDocument(Strict):
    """The content of comparison.json."""

    schema_version: Literal[2] = 2
    study: str
    budget: BudgetResult
    arms: dict[str, ArmResult]
    metric: Metric = Field("accuracy", description="What ranking, pairs and recommendation go by.")
    pairs: list[PairResult] = Field(description="All pairs that were tested, corrected together.")
    winners: Ranking | None = Field(
        None,
        description="How the score of the winning search trial and the mean of its retrainings rank the arms, on "
        "validation images.",
    )
    ranking: list[str] | None = Field(description="The arms by mean test accuracy, best first.")
    ranking_seeds: list[int] = Field(description="Seeds that all arms have: the ranking is over them.")
    reason: str | None = Field(description="Why there is no ranking.")
    extensions: Count = Field(0, description="How often the study was extended after its result was known.")
    robustness: RobustnessResult | None = Field(None, description="On corrupted test images, if the study asks for it.")
    folds: Count | None = Field(
        None,
        description="Folds of the data, of which every seed holds out another one: intervals and p-values are then by "
        "Nadeau and Bengio's corrected t. Null where seeds are no folds.",
    )
    equivalence_margin: Share = Field(DEFAULT_MARGIN, description="Largest difference that counts as equally good.")
    recommendation: Recommendation | None = Field(None, description="The model to ship; null until all trials ended.")

    @classmethod
    def read(cls, path: Path) -> "ComparisonDocument":
        """Read a ``comparison.json``, of this version or of version 1."""
        return cls.model_validate(upgraded_comparison(json.loads(path.read_text(encoding="utf-8"))))

    def validation_of(self, name: str) -> Accuracy | None:
        """Return the metric of the study of an arm on validation images."""
        return validation_of(self.arms[name], self.metric)

    def test_of(self, name: str) -> Accuracy | None:
        """Return the metric of the study of an arm on test images."""
        return test_of(self.arms[name], self.metric)

    @property
    def overlap(self) -> float:
        """How far the trainings of its seeds overlap, 0 where they are no folds."""
        return overlap_of_folds(self.folds)

    @property
    def t_words(self) -> str:
        """What its intervals and p-values are by, in words."""
        return "Student's t" if self.folds is None else "the corrected t for folds"

    @property
    def folds_text(self) -> str | None:
        """Over which folds its seeds are, in words; None where they are no folds."""
        if self.folds is None:
            return None
        used = max((len(arm.test_accuracy.per_seed) for arm in self.arms.values() if arm.test_accuracy), default=0)
        part = "" if used == self.folds else f"{used} of "
        return f"over {part}{self.folds} folds, with the corrected t"

    @property
    def metric_words(self) -> str:
        """The metric of the study in words."""
        return self.metric.replace("_", " ")

    @property
    def shipped(self) -> Recommendation | None:
        """The model to ship; of a document from before there were recommendations it follows from its content."""
        if "recommendation" in self.model_fields_set:
            return self.recommendation
        return recommendation_of(
            self.arms,
            self.pairs,
            margin=self.equivalence_margin,
            reason=self.reason,
            metric=self.metric,
            overlap=self.overlap,
        )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "ComparisonDocument":
        if (self.ranking is None) == (self.reason is None):
            raise ValueError("a comparison has either a ranking or the reason why it has none")
        if self.ranking is not None and sorted(self.ranking) != sorted(self.arms):
            raise ValueError(f"a ranking names every arm once, got {self.ranking} of {sorted(self.arms)}")
        unknown = {name for pair in self.pairs for name in (pair.a, pair.b)} - set(self.arms)
        if unknown:
            raise ValueError(f"pairs name arms of the study, got {sorted(unknown)}")
        return self


def validation_of(arm: ArmResult, metric: Metric) -> Accuracy | None:
    """Return a metric of an arm on validation images."""
    return arm.validation_balanced_accuracy if metric == "balanced_accuracy" else arm.validation_accuracy


def test_of(arm: ArmResult, metric: Metric) -> Accuracy | None:
    """Return a metric of an arm on test images."""
    return arm.test_balanced_accuracy if metric == "balanced_accuracy" else arm.test_accuracy


def recommendation_of(
    arms: Mapping[str, ArmResult],
    pairs: list[PairResult],
    *,
    margin: float,
    reason: str | None,
    metric: Metric,
    overlap: float = 0.0,
) -> Recommendation | None:
    """Return which model to ship, among the arms that have one.

    Args:
        arms: All arms, by name.
        pairs: The pairs that were tested.
        margin: Of equivalence, a share.
        reason: Why there is no ranking; None where there is one.
        metric: What the study goes by.
        overlap: Of the trainings behind the seeds, as in `significance.inflation`.
    """
    candidates = {
        name: Candidate(
            name=name,
            validation=validation,
            test=test,
            seed=arm.exported_seed,
            macs=arm.macs,
            parameters=arm.parameters,
            latency_ms=arm.latency_ms,
            missing_seeds=tuple(arm.missing_seeds),
        )
        for name, arm in arms.items()
        if (validation := validation_of(arm, metric)) is not None and (test := test_of(arm, metric)) is not None
    }
    return recommend(candidates, pairs, margin=margin, unlike=reason, metric=metric, overlap=overlap)


def asked(document: ComparisonDocument) -> list[PairResult]:
    """Return the pairs that readers ask about: those of learned arms, and those of the best and the recommended arm.

    The others are tested as well, since which arm is the best is known only from the data.
    """
    named = {name for name, arm in document.arms.items() if arm.role == "learned"}
    named |= {best} if (best := best_of(document)) is not None else set()
    named |= {document.shipped.arm} if document.shipped is not None else set()
    return [pair for pair in document.pairs if named & {pair.a, pair.b}]


def best_of(document: ComparisonDocument) -> str | None:
    """Return the arm with the highest mean test accuracy, over the seeds that all share if they are ranked."""
    if document.ranking is not None:
        return document.ranking[0]
    means = {name: found.mean for name in document.arms if (found := document.test_of(name)) is not None}
    return max(means, key=lambda name: means[name], default=None)
