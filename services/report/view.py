"""What a report is made of: plain values, so that it can be rendered without a store, a cluster or a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.analysis.comparison import ArmResult, ComparisonDocument

if TYPE_CHECKING:
    from services.report.album import Album  # which needs torch


@dataclass(frozen=True, slots=True)
class TrialView:
    """A trial as the report sees it.

    Args:
        arm: Name of the contestant.
        phase: ``search`` or ``retrain``.
        number: Position among the trials of the arm and phase.
        seed: Seed of its experiment.
        state: State in the store.
        reason: Why it failed or was pruned, or None.
        score: Validation accuracy of a complete trial, 0..1, or None.
        params: What the search chose, by name.
        sample_passes: What it has cost.
        seconds: Measured training time.
        result: What a complete trial ended in: ``validation_accuracy``, ``test_accuracy``, ``parameters``, ``macs``,
            ``architecture`` (its JSON form), ``gap`` (``soft``, ``drawn``, ``hard``, ``inherited``),
            ``probabilities`` (P by layer, nodes x clusters), ``confusion`` (true x predicted) and ``predictions`` (the
            class given to each test image). What a trial does not have may be left out or None.
        epochs: Epoch records as plain JSON types.
        search: Which search of its arm it belongs to, where an arm is searched several times.
    """

    arm: str
    phase: str
    number: int
    seed: int
    state: str
    reason: str | None = None
    score: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    sample_passes: int = 0
    seconds: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    search: int = 0

    @property
    def is_model(self) -> bool:
        """Whether the trial is a retrained model that counts in the comparison."""
        return self.phase == "retrain" and self.state == "complete"


@dataclass(frozen=True, slots=True)
class ReportView:
    """A study as the report sees it.

    Args:
        comparison: The content of ``comparison.json``.
        study: The resolved study.
        environment: The content of ``environment.json``.
        trials: All trials, failed and pruned ones too.
        class_names: Of the data; empty if they are not known.
        hierarchy: For each known grouping of the classes, the group of every class.
        importance: By arm and searched parameter its share of the importance, and the largest that chance made of it.
        album: Images of the data to show, or None to show none.
    """

    comparison: Mapping[str, Any]
    study: Mapping[str, Any]
    environment: Mapping[str, Any]
    trials: Sequence[TrialView] = ()
    class_names: Sequence[str] = ()
    hierarchy: Mapping[str, Sequence[int]] = field(default_factory=dict)
    importance: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    album: "Album | None" = None

    def models(self, arm: str) -> list[TrialView]:
        """Return the retrained models of an arm by seed."""
        return sorted((t for t in self.trials if t.arm == arm and t.is_model), key=lambda trial: trial.seed)

    def names_of(self, classes: int) -> list[str]:
        """Return the names of `classes` classes, their numbers if the data named another number of them."""
        if len(self.class_names) == classes:
            return [str(name) for name in self.class_names]
        return [str(label) for label in range(classes)]


def in_order(document: ComparisonDocument) -> dict[str, ArmResult]:
    """Return the arms, best first if they are ranked."""
    return {name: document.arms[name] for name in document.ranking or document.arms}
