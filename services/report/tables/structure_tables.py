"""The tables of what was learned: ends of probabilities, branches, steps, groups of classes, blocks."""

from collections.abc import Iterator, Mapping, Sequence

from services.analysis.comparison import ComparisonDocument
from services.analysis.learned_structure import ArmStructure
from services.report.answers import Kept
from services.report.classes import GroupAgreement
from services.report.tables.accuracy_tables import points
from services.report.tables.report_table import Cell, Column, Table, amount, count, share, table
from services.report.view import ABSENT, ReportView, in_order, percent


def memberships_tables(document: ComparisonDocument) -> Iterator[Table]:
    """Yield to which ends the membership probabilities of every arm came that learned some."""
    rows = [
        [Cell(name), count(arm.memberships.seeds), Cell(arm.memberships.summary)]
        for name, arm in in_order(document).items()
        if arm.memberships is not None
    ]
    if rows:
        yield table(
            "memberships",
            "Ends of the membership probabilities",
            "To which end the membership probabilities of each layer came: they diverged to 0 and 1 (a structure was "
            "learned), stayed where they began (the grouping is arbitrary), or went to 1 (a hierarchy does not help); "
            "in parentheses, the number of seeds. Data: comparison.json, arms, memberships.",
            [Column("arm"), "seeds", Column("ends", is_prose=True)],
            rows,
        )


def structures(document: ComparisonDocument) -> dict[str, ArmStructure]:
    """Return how far every exported network branches that is not its plain dense backbone, learned ones first."""
    told = {name: arm.structure for name, arm in in_order(document).items()}
    changed = {
        name: found
        for name, found in told.items()
        if found is not None and (found.learned or found.exported.is_branched or found.exported.removed)
    }
    return dict(sorted(changed.items(), key=lambda item: document.arms[item[0]].role != "learned"))


def structure_tables(
    view: ReportView,
    document: ComparisonDocument,
    gaps: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    raw: str,
    hard: str,
) -> Iterator[Table]:
    """Yield the layers of branched networks, their branches, and the accuracy at each step to them.

    Args:
        view: The study.
        document: Its comparison.
        gaps: By arm and step the validation accuracy of every seed.
        raw: Of the steps that with thresholded C.
        hard: That with hard C.
    """
    if found := structures(document):
        yield _layers(found)
        if rows := list(_branch_rows(view, found)):
            yield table(
                "branches",
                "What belongs to one branch alone",
                "What belongs to one branch alone: nodes that are in its cluster only. Data: comparison.json, arms, "
                "structure.",
                [Column("arm"), "branch", "MACs", "parameters", Column("classes", is_prose=True)],
                rows,
            )
    if gaps:
        yield _gap_table(gaps, raw=raw, hard=hard)


def _layers(found: Mapping[str, ArmStructure]) -> Table:
    rows = [
        [
            Cell(name),
            Cell(layer.name),
            Cell(
                f"{layer.nodes:,}" + (f" of {layer.dense_nodes:,}" if layer.dense_nodes is not None else ""),
                layer.nodes,
            ),
            count(layer.groups),
            amount(layer.density, ".3g"),
        ]
        for name, told in found.items()
        for layer in told.exported.layers
    ]
    return table(
        "layers",
        "How far the networks branch",
        "How far each exported network branches that is not its plain dense backbone. Density is the share of the "
        "connections between kept nodes that exist: 1 in every layer means that there are no branches. Data: "
        "comparison.json, arms, structure.",
        [Column("arm"), Column("layer", is_text=True), "nodes kept", "groups", "density"],
        rows,
    )


def _branch_rows(view: ReportView, found: Mapping[str, ArmStructure]) -> Iterator[list[Cell]]:
    for name, told in found.items():
        names = view.names_of(told.exported.layers[-1].nodes)
        for branch in told.exported.branches if told.exported.is_branched else ():
            classes = ", ".join(names[label] for label in branch.classes)
            own = (count(branch.exclusive_macs), count(branch.exclusive_parameters))
            yield [Cell(name), count(branch.cluster), *own, Cell(classes or "none")]


def _gap_table(gaps: Mapping[str, Mapping[str, Sequence[float]]], *, raw: str, hard: str) -> Table:
    rows = []
    for name, steps in gaps.items():
        means = {step: sum(values) / len(values) if values else None for step, values in steps.items()}
        before, after = means.get(raw), means.get(hard)
        change = (
            Cell(ABSENT) if before is None or after is None else Cell(points(after - before), 100 * (after - before))
        )
        shown = [Cell(ABSENT) if mean is None else Cell(percent(mean), 100 * mean) for mean in means.values()]
        rows.append([Cell(name), count(max(map(len, steps.values()))), *shown, change])
    return table(
        "gap",
        "Discretization gap",
        "Validation accuracy in % at each step from learned probabilities to a branched network, mean over seeds; "
        "last, what trimming, merging and the clean-up change between thresholded C and hard C.",
        [
            Column("arm"),
            "seeds",
            *(Column(step, unit="%") for step in next(iter(gaps.values()))),
            "trimming and clean-up, points",
        ],
        rows,
    )


def agreement_tables(agreements: Sequence[GroupAgreement]) -> Iterator[Table]:
    """Yield the agreement of every arm with every known grouping of classes, if there is any."""
    if agreements:
        yield table(
            "agreement",
            "Agreement with known groups of classes",
            "Adjusted mutual information: 1 means identical groups, 0 agreement by chance. "
            '"Shuffled" is the interval that holds 95% of the means after the classes are shuffled; p is the share of '
            "these means that are at least as large as the observed one, not corrected for the number of rows.",
            [Column("arm"), Column("known groups", is_text=True), "seeds", "mean", "shuffled", "p"],
            [
                [
                    Cell(row.arm),
                    Cell(row.reference),
                    count(len(row.agreement.values)),
                    Cell(_signed(row.agreement.mean), row.agreement.mean, style="strong"),
                    Cell(" to ".join(map(_signed, row.agreement.shuffled)), row.agreement.shuffled),
                    amount(row.agreement.p_value, ".3f"),
                ]
                for row in agreements
            ],
        )


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def blocks_tables(kept: Mapping[str, Sequence[Kept]]) -> Iterator[Table]:
    """Yield the blocks that images keep, if networks skip any."""
    if kept:
        largest = max(model.full for models in kept.values() for model in models)
        yield table(
            "kept-blocks",
            "Blocks that images keep",
            "Blocks that test images keep, mean ± standard deviation over images, and multiply-accumulates (MACs) per "
            'image including the policy network, means over seeds; "share" is of the largest network of the study '
            "with all its blocks, the cost of the policy network is a share of its own. Fixed paths come as near to a "
            "cost as whole blocks allow. Data: the store, result.blocks.",
            [
                Column("arm"),
                *("blocks", "distinct paths, by seed", "MACs"),
                Column("share", unit="%"),
                Column("policy network", unit="%"),
            ],
            [_blocks_row(arm, models, largest) for arm, models in kept.items()],
        )


def _blocks_row(arm: str, models: Sequence[Kept], largest: int) -> list[Cell]:
    number = len(models)
    used = [model.keep.sum(axis=1) for model in models]
    mean, sd = sum(float(u.mean()) for u in used) / number, sum(float(u.std()) for u in used) / number
    macs = sum(model.macs for model in models) / number
    return [
        Cell(arm),
        Cell(f"{mean:.2f} ± {sd:.2f} of {models[0].keep.shape[1]}", mean),
        Cell(", ".join(f"{len({row.tobytes() for row in model.keep}):,}" for model in models)),
        amount(macs, ",.0f"),
        share(macs, largest),
        share(sum(model.policy / model.full for model in models), number),
    ]
