"""The figures of learned structure: memberships, masks, the steps to a branched network, architectures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas_blockout import plots
from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.report import classes
from services.report.figure import Picture, Remark, Shown, exported_trial, spread, without_preference
from services.report.view import ReportView, in_order
from services.trial_record import Trial

_MOST_MASKS = 12
GAP_STEPS = {
    "soft": "soft P",
    "drawn": "drawn C",
    "raw": "thresholded C",
    "hard": "hard C",
    "inherited": "inherited",
    "tuned": "fine-tuned",
}


def gaps(view: ReportView, document: ComparisonDocument) -> dict[str, dict[str, list[float]]]:
    """Return, by arm and step from P to a fine-tuned branched network, the validation accuracy of every seed.

    All arms have the same steps; ``thresholded C`` is left out where no arm has it, as in older studies.
    """
    by_seed_of: dict[str, list[Mapping[str, Any]]] = {}
    for name in in_order(document):
        if models := [trial for trial in view.models(name) if trial.outcome.get("gap")]:
            by_seed_of[name] = [{**t.outcome["gap"], "tuned": t.outcome.get("validation_accuracy")} for t in models]
    measured = {step for by_seed in by_seed_of.values() for gap in by_seed for step in gap}
    steps = {step: text for step, text in GAP_STEPS.items() if step != "raw" or step in measured}
    return {
        name: {text: [float(gap[step]) for gap in by_seed if gap.get(step) is not None] for step, text in steps.items()}
        for name, by_seed in by_seed_of.items()
    }


def learned(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield what each arm learned; a placebo learned the same before it was shuffled, and is left out."""
    for number, (name, arm) in enumerate(in_order(document).items()):
        trial = exported_trial(view, name, arm)
        probabilities = (trial.outcome.get("probabilities") if trial else None) or {}
        if trial is None or arm.role == "placebo":
            continue
        pictures = list(_density(view, number, name, trial, list(probabilities)))
        if probabilities:
            pictures += [*_masks(number, name, trial), *_projection(view, number, name, trial)]
        if pictures:
            yield from (*pictures, *_architecture(view, document, number, name))
        if probabilities:
            yield from classes.expected_clusters(view, number, name, trial)


def gap(view: ReportView, document: ComparisonDocument) -> Iterator[Shown]:
    """Yield the accuracy left after each step from P to a branched network, if an arm took these steps."""
    steps = gaps(view, document)
    if steps and all(len(set(map(tuple, arm.values()))) == 1 for arm in steps.values()):
        yield Remark(
            "gap",
            "From learned probabilities to a branched network",
            "Validation accuracy is the same at every step from P to the fine-tuned network, in every seed.",
        )
    elif steps:
        yield Picture(
            "gap",
            "From learned probabilities to a branched network",
            "Validation accuracy with the learned P (soft), with sampled memberships (drawn), with thresholded "
            "memberships (thresholded C), with what trimming, merging and the clean-up left of them (hard C), after "
            "the branched network inherits the weights, and after fine-tuning. The thick line is the mean over seeds, "
            "thin lines are single seeds.",
            "n = seeds, in each panel",
            "trials.csv, gap.*",
            plots.figure_gap({name: (document.arms[name].role, accuracies) for name, accuracies in steps.items()}),
        )


def _density(view: ReportView, number: int, name: str, trial: Trial, layers: Sequence[str]) -> Iterator[Shown]:
    prefix = "blockout/density/"
    records = [
        record
        for record in view.epochs_of(trial)
        if any(key.startswith(prefix) for key in record.get("telemetry") or {})
    ]
    if not records:
        return
    recorded = [key.removeprefix(prefix) for key in records[0]["telemetry"] if key.startswith(prefix)]
    order = [layer for layer in layers if layer in recorded] + [layer for layer in recorded if layer not in layers]
    densities = {layer: [record["telemetry"][f"{prefix}{layer}"] for record in records] for layer in order}
    if all(spread(rows) == 0 for rows in densities.values()):
        still = f"No membership probability left its bin of .05 from the end of the first of {len(records)} epochs on."
        yield Remark(
            f"density-{number}",
            "Distribution of the membership probabilities during training",
            still if len(records) > 1 else "Structure was learned in one epoch: there is no course to draw.",
            name,
        )
        return
    medians = {layer: [_median(record["telemetry"], layer) for record in records] for layer in order}
    yield Picture(
        f"density-{number}",
        "Distribution of the membership probabilities during training",
        "One panel per layer, in the order of the network. The stronger the color, the more entries of P lie in that "
        "bin (square root of the share, twenty bins); the line is the median. A layer has learned structure when most "
        "entries are at 0 or 1.",
        f"n = 1 training run, seed {trial.seed}, {count_of(len(records), 'epoch')}",
        "the store, epochs.telemetry blockout/density/* and blockout/median/*",
        plots.figure_density(densities, medians, epochs=[int(record["epoch"]) + 1 for record in records]),
        name,
    )


def _median(telemetry: Mapping[str, Any], layer: str) -> float:
    value = telemetry.get(f"blockout/median/{layer}")
    return float("nan") if value is None else float(value)


def _projection(view: ReportView, number: int, name: str, trial: Trial) -> Iterator[Shown]:
    probabilities = trial.outcome["probabilities"]
    *_, last = probabilities.values()
    if len(last[0]) < 2:
        return
    title = "Nodes by their membership probabilities"
    if (remark := without_preference(f"projection-{number}", title, name, probabilities)) is not None:
        yield remark
        return
    of_classes = len(last) == len(view.class_names)
    figure, named = plots.figure_projection(probabilities, view.class_names if of_classes else None)
    yield Picture(
        f"projection-{number}",
        title,
        "Each dot is a node, at the first two principal components of its row of P (one projection for all layers), in "
        f"the color of its strongest cluster. {named} of {len(last)} nodes of the last layer are labeled"
        f"{'' if named == len(last) else '; there was no room for the others' if of_classes else ''}.",
        f"n = 1 training run, seed {trial.seed}, {sum(map(len, probabilities.values())):,} nodes",
        "the store, result.probabilities",
        figure,
        name,
    )


def _masks(number: int, name: str, trial: Trial) -> Iterator[Shown]:
    probabilities = trial.outcome["probabilities"]
    if len(probabilities) < 2:
        return
    title = "Masks, with nodes sorted by cluster"
    if (remark := without_preference(f"masks-{number}", title, name, probabilities)) is not None:
        yield remark
        return
    pairs, told = mask_pairs(probabilities, trial.outcome.get("architecture") or {})
    yield Picture(
        f"masks-{number}",
        title,
        f"{told}: the stronger the color, the likelier a weight is kept. Strips "
        "show the strongest cluster of each node. Dark blocks are branches, pale areas are dropped connections. Large "
        "masks are averaged down to 96 rows and columns.",
        f"n = 1 training run, seed {trial.seed}, {count_of(len(next(iter(probabilities.values()))[0]), 'cluster')}",
        "the store, result.probabilities",
        plots.figure_masks(probabilities, pairs),
        name,
    )


def mask_pairs(
    probabilities: Mapping[str, Sequence[Any]], architecture: Mapping[str, Any]
) -> tuple[list[tuple[str, str]] | None, str]:
    """Return between which layers masks are drawn, None for each and the next, and that in words.

    Args:
        probabilities: P by layer, in their order.
        architecture: What became of them, as JSON; of a graph it has edges.
    """
    if "edges" not in architecture:
        return None, "From each layer (columns) to the next (rows)"
    known = [(source, reader) for source, reader in architecture["edges"] if {source, reader} <= probabilities.keys()]
    sizes = [len(probabilities[source]) * len(probabilities[reader]) for source, reader in known]
    largest = sorted(range(len(known)), key=lambda number: -sizes[number])[:_MOST_MASKS]
    told = "From each layer (columns) to each that reads it (rows)"
    if len(known) > _MOST_MASKS:
        told += f", the {_MOST_MASKS} pairs with the most nodes of {len(known)}"
    return [known[number] for number in sorted(largest)], told


def other_architectures(view: ReportView, document: ComparisonDocument, *, known: set[str]) -> Iterator[Shown]:
    """Yield the diagrams of arms with branches that are not among the `known` ones, each network once."""
    drawn: dict[str, str] = {}
    for number, (name, arm) in enumerate(in_order(document).items()):
        for shown in _architecture(view, document, number, name) if name not in known else ():
            same = drawn.get(arm.architecture or "")
            if same is not None and isinstance(shown, Picture):
                yield Remark(shown.name, shown.title, f"It is the same as that of {same}.", name)
                continue
            if arm.architecture and isinstance(shown, Picture):
                drawn[arm.architecture] = name
            yield shown


_ON_GRAPHS = (
    " Gray lines are connections without masks, arcs below lead to columns that read one further away or a later one. "
    "A column with a number in parentheses is a stage of so many layers."
)


def _architecture(view: ReportView, document: ComparisonDocument, number: int, name: str) -> Iterator[Shown]:
    """Yield the diagram of an arm's exported model, if it has branches."""
    arm = document.arms[name]
    trial = exported_trial(view, name, arm)
    architecture = (trial.outcome.get("architecture") if trial else None) or None
    if trial is None or architecture is None or all(len(layer["groups"]) == 1 for layer in architecture["layers"]):
        return
    if arm.structure is not None and not arm.structure.exported.is_branched:
        groups = sum(len(layer["groups"]) for layer in architecture["layers"])
        yield Remark(
            f"architecture-{number}",
            "Architecture of the exported model",
            f"Its {groups} groups are all connected: every node reads every node of the layers that its own reads, so "
            "there are no branches to draw.",
            name,
        )
        return
    labels = [label for group in architecture["layers"][-1]["groups"] for label in group.get("classes") or ()]
    yield Picture(
        f"architecture-{number}",
        "Architecture of the exported model",
        "Columns are layers, boxes are groups of nodes with the number of nodes, stripes the clusters they belong to. "
        "A group takes input from every earlier group that leads to the dot of one of its clusters; the classes are at "
        f"the end.{_ON_GRAPHS if 'edges' in architecture else ''}",
        f"n = 1 model, seed {trial.seed}, architecture {arm.architecture or 'without a hash'}",
        "models/*/architecture.json",
        plots.figure_architecture(architecture, view.names_of(max(labels, default=-1) + 1)),
        name,
    )
