"""The figures of classes: how many clusters they belong to, and whether clusters agree with known groups of classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nas_blockout import plots
from nas_blockout.statistics.cluster_agreement import SHUFFLES, Agreement
from nas_blockout.statistics.cluster_agreement import agreement as agreement_of
from services.analysis.comparison import ComparisonDocument
from services.report.figure import FLAT, Picture, Shown, counted, flat_classes, spread
from services.report.view import ReportView, in_order
from services.trial_record import Trial

SAMPLES = 2


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    """Agreement of an arm's groups of classes with a known grouping."""

    arm: str
    reference: str
    agreement: Agreement


def expected_clusters(view: ReportView, number: int, name: str, trial: Trial) -> Iterator[Shown]:
    """Yield how many clusters each class is expected to belong to, with images of the extreme ones."""
    layer, last = list(trial.outcome["probabilities"].items())[-1]
    if len(last) != len(view.class_names):  # the nodes of the last layer are not the classes
        return
    learned = [(model.outcome.get("probabilities") or {}).get(layer, ()) for model in view.models(name)]
    expected = [[sum(row) for row in p] for p in learned if len(p) == len(last)]
    if (remark := flat_classes(number, name, expected, len(last[0]))) is not None:
        yield remark
        return
    fewest, most = plots.extreme_classes(expected)
    album = view.album
    samples = {label: album.of_class(label, SAMPLES) for label in (*fewest, *most)} if album else {}
    shown = " Below are the first validation images of the extreme classes." if samples else ""
    yield Picture(
        f"classes-{number}",
        "Expected clusters of each class",
        "The sum of the membership probabilities of each class. Dots are means over seeds, thin lines their range; the "
        f"thick line is the median over classes and the gray band spans the quartiles.{shown}",
        f"{counted([len(expected)], 'seed')}, {len(last)} classes",
        "the store, result.probabilities",
        plots.figure_clusters_per_class(expected, view.class_names, samples),
        name,
    )


def group_agreements(view: ReportView, document: ComparisonDocument) -> list[GroupAgreement]:
    """Return the agreement of every arm that groups classes with every known grouping."""
    agreements = []
    for reference, known in view.hierarchy.items():
        # A grouping with one group, or with one group per class, says nothing about which classes belong together.
        if len(known) != len(view.class_names) or len(set(known)) in (1, len(known)):
            continue
        for name in in_order(document):
            groups = [_groups(model, len(known)) for model in view.models(name)]
            if grouped := [group for group in groups if group]:
                agreements.append(GroupAgreement(name, reference, agreement_of(grouped, known)))
    return agreements


def _groups(trial: Trial, classes: int) -> Sequence[int] | None:
    """Return the group of every class: its strongest learned cluster, or that of a fixed architecture."""
    probabilities = list((trial.outcome.get("probabilities") or {}).values())
    if probabilities and len(probabilities[-1]) == classes:
        if spread(probabilities[-1]) < FLAT:  # the strongest cluster of every class would be an accident
            return None
        return [max(range(len(row)), key=row.__getitem__) for row in probabilities[-1]]
    layers = (trial.outcome.get("architecture") or {}).get("layers") or [{"groups": ()}]
    group_of = {
        label: number for number, group in enumerate(layers[-1]["groups"]) for label in group.get("classes") or ()
    }
    if len(group_of) != classes or len(set(group_of.values())) == 1:
        return None
    return [group_of[label] for label in range(classes)]


def agreement(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the agreement of the groups of classes with known groups, if the data has any."""
    agreements = group_agreements(view, document)
    if not agreements:
        return
    rows = [
        plots.Agreed(
            row.arm, document.arms[row.arm].role, row.reference, row.agreement.values, row.agreement.mean,
            row.agreement.shuffled,
        )
        for row in agreements
    ]  # fmt: skip
    yield Picture(
        "agreement",
        "Agreement with known groups of classes",
        "Adjusted mutual information between known groups and those of the arm (learned structure: the strongest "
        "cluster of each class; fixed architecture: its group). 1 means identical groups, 0 agreement by chance. Large "
        "marks are means over seeds, dots single seeds; the gray band holds 95% of the means over "
        f"{SHUFFLES} shuffles of the classes.",
        f"{counted([len(row.values) for row in rows], 'seed')}, {len(view.class_names)} classes",
        "the store, result.probabilities and result.architecture; the hierarchy of the data",
        plots.figure_agreement(rows),
    )
