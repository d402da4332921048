"""The figures of classes: how many clusters they belong to, and whether those that share one belong together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nas_blockout import plots
from nas_blockout.statistics.cluster_agreement import SHUFFLES, Agreement
from nas_blockout.statistics.cluster_agreement import agreement as agreement_of
from services.analysis.comparison import ComparisonDocument
from services.report.figure import Picture, counted
from services.report.view import ReportView, in_order
from services.trial_record import Trial

SAMPLES = 2


@dataclass(frozen=True, slots=True)
class Kinship:
    """How far the groups of classes of an arm agree with a known grouping."""

    arm: str
    reference: str
    found: Agreement


def expected_clusters(view: ReportView, number: int, name: str, trial: Trial) -> Iterator[Picture]:
    """Yield how many clusters each class is expected to belong to, with images of the extreme ones."""
    layer, last = list(trial.outcome["probabilities"].items())[-1]
    if len(last) != len(view.class_names):
        return
    learned = [(model.outcome.get("probabilities") or {}).get(layer, ()) for model in view.models(name)]
    expected = [[sum(row) for row in p] for p in learned if len(p) == len(last)]
    fewest, most = plots.extreme_classes(expected)
    album = view.album
    samples = {label: album.of_class(label, SAMPLES) for label in (*fewest, *most)} if album else {}
    shown = " Below, the first validation images of the extreme classes." if samples else ""
    yield Picture(
        f"classes-{number}",
        "Expected clusters of each class",
        "The sum of a class's membership probabilities: dots are means over seeds, lines their range; over classes the "
        f"thick line is the median and the gray band lies between the quartiles.{shown}",
        f"{counted([len(expected)], 'seed')}, {len(last)} classes",
        "the store, result.probabilities",
        plots.figure_clusters_per_class(expected, view.class_names, samples),
        name,
    )


def kinships(view: ReportView, document: ComparisonDocument) -> list[Kinship]:
    """Return the agreement of every arm that groups classes with every known grouping; constant ones are left out."""
    found = []
    for reference, known in view.hierarchy.items():
        if len(known) != len(view.class_names) or len(set(known)) in (1, len(known)):
            continue
        for name in in_order(document):
            groups = [_groups(model, len(known)) for model in view.models(name)]
            if kept := [group for group in groups if group]:
                found.append(Kinship(name, reference, agreement_of(kept, known)))
    return found


def _groups(trial: Trial, classes: int) -> Sequence[int] | None:
    """Return the group of every class: its strongest learned cluster, or that of a fixed architecture."""
    probabilities = list((trial.outcome.get("probabilities") or {}).values())
    if probabilities and len(probabilities[-1]) == classes:
        return [max(range(len(row)), key=row.__getitem__) for row in probabilities[-1]]
    layers = (trial.outcome.get("architecture") or {}).get("layers") or [{"groups": ()}]
    group_of = {
        label: number for number, group in enumerate(layers[-1]["groups"]) for label in group.get("classes") or ()
    }
    if len(group_of) != classes or len(set(group_of.values())) == 1:
        return None
    return [group_of[label] for label in range(classes)]


def agreement(view: ReportView, document: ComparisonDocument) -> Iterator[Picture]:
    """Yield how far the groups of classes agree with known ones, where the data has such."""
    found = kinships(view, document)
    if not found:
        return
    rows = [
        plots.Agreed(
            each.arm, document.arms[each.arm].role, each.reference, each.found.values, each.found.mean,
            each.found.shuffled,
        )
        for each in found
    ]  # fmt: skip
    yield Picture(
        "agreement",
        "Groups of classes against known groups",
        "Agreement of the groups of classes (learned: the strongest cluster of each class; fixed: its group in the "
        "architecture) with known groups: 1 is the same groups, 0 is chance. Large marks are means over seeds, dots "
        f"single seeds; the gray band holds 95% of the means after the classes were shuffled, {SHUFFLES} times.",
        f"{counted([len(row.values) for row in rows], 'seed')}, {len(view.class_names)} classes",
        "the store, result.probabilities and result.architecture; the hierarchy of the data",
        plots.figure_agreement(rows),
    )
