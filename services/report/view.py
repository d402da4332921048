"""The content of a report: plain values, so that it can be rendered without a store, a cluster or a data set.

The texts of numbers that more than one part of the report shows are here too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.seed_metrics import OverSeeds
from services.trial_record import Trial, TrialKey

if TYPE_CHECKING:
    from services.report.album import Album  # which needs torch

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class ReportView:
    """A study as the report sees it.

    Args:
        comparison: The content of ``comparison.json``.
        study: The resolved study.
        environment: The content of ``environment.json``.
        trials: All trials, including failed and pruned ones. Missing parts of a result may be left out or None.
        epochs: Epoch records of retrained models as plain JSON types, by arm, phase and trial number; without records
            there are no curves.
        class_names: Class names of the data; empty if they are not known.
        hierarchy: For each known grouping of the classes, the group of every class.
        importance: By arm and searched parameter, its share of the importance and the largest share by chance.
        album: Images of the data to show, or None to show none.
        links: Addresses of MLflow's pages on which its arms are compared, by what they show.
    """

    comparison: Mapping[str, Any]
    study: Mapping[str, Any]
    environment: Mapping[str, Any]
    trials: Sequence[Trial] = ()
    epochs: Mapping[TrialKey, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    hierarchy: Mapping[str, Sequence[int]] = field(default_factory=dict)
    importance: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    album: "Album | None" = None
    links: Mapping[str, str] = field(default_factory=dict)

    def models(self, arm: str) -> list[Trial]:
        """Return the retrained models of an arm by seed."""
        return sorted((t for t in self.trials if t.arm == arm and t.is_model), key=lambda trial: trial.seed)

    def epochs_of(self, trial: Trial) -> Sequence[Mapping[str, Any]]:
        """Return the epoch records of a trial; empty if there are none."""
        return self.epochs.get(trial.key, ())

    def names_of(self, classes: int) -> list[str]:
        """Return the names of the classes, or their numbers if the data names another number of classes."""
        if len(self.class_names) == classes:
            return [str(name) for name in self.class_names]
        return [str(label) for label in range(classes)]


# Between a full stop and a capital letter, perhaps with quotes around; what is written "1.5 of 4" stays whole.
_BETWEEN_SENTENCES = re.compile(r'(?<=[.!?"])\s+(?=["(]?[A-Z0-9])')


class Told:
    """What a report has said already, so that no sentence stands in it twice.

    Captions of figures of the same kind explain how to read them in the same words: the first one says it, the others
    name the first.
    """

    SHORT = 6  # words: a sentence of so many may stand twice

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def once(self, text: str, place: str = "", *, again: str = "Read it like {}.") -> str:
        """Return a text without the sentences that were said before; the place that said the first of them is named.

        Args:
            text: Some sentences.
            place: Where they stand, for those who look them up: ``Figure 3``.
            again: The sentence in place of those left out, with the earlier place for ``{}``; empty for none.
        """
        kept, earlier = [], ""
        for sentence in sentences(text):
            known = sentence.rstrip(".!?")
            if len(known.split()) > self.SHORT and known in self._places:
                earlier = earlier or self._places[known]
                continue
            self._places.setdefault(known, place)
            kept.append(sentence)
        return " ".join([*kept, again.format(earlier)] if earlier and again else kept)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [sentence for sentence in _BETWEEN_SENTENCES.split(" ".join(text.split())) if sentence]


def in_order(document: ComparisonDocument) -> dict[str, ArmResult]:
    """Return the arms, best first if they are ranked."""
    return {name: document.arms[name] for name in document.ranking or document.arms}


def percent(share: float | None) -> str:
    """Return a share of 1 in percent, without the sign."""
    return ABSENT if share is None else f"{100 * share:.2f}"


def interval(mean: OverSeeds) -> str:
    """Return the 95% interval of a mean over seeds in percent, with the number of seeds."""
    seeds = f"{len(mean.per_seed)} seed{'s' * (len(mean.per_seed) > 1)}"
    if mean.ci95 is None:
        return f"no interval, {seeds}"
    return f"{percent(mean.ci95[0])} to {percent(mean.ci95[1])}, {seeds}"
