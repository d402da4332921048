"""Tables of a report other than that of the arms, as texts: cost, search, Pareto fronts, agreement, unique answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.latency import spread_text
from services.analysis.learned_structure import ArmStructure
from services.analysis.pareto import Front, FrontTrial
from services.analysis.usage import ArmUsage
from services.budget.accounting import END_WORDS
from services.report.answers import Kept, UniqueAnswers
from services.report.classes import GroupAgreement
from services.report.view import ABSENT, ReportView, in_order


@dataclass(frozen=True, slots=True)
class StructureRow:
    """How far one layer of an arm's exported network branches, as texts; `arm` and `summary` only in the first."""

    arm: str
    summary: str
    layer: str
    nodes: str
    groups: str
    density: str


@dataclass(frozen=True, slots=True)
class BranchRow:
    """What belongs to one branch of an arm's exported network alone, as texts."""

    arm: str
    cluster: str
    macs: str
    parameters: str
    classes: str


@dataclass(frozen=True, slots=True)
class CostRow:
    """What an arm spent: overhead is a share of its seconds, all other shares are of its sample passes."""

    arm: str
    passes: str
    search: str
    failed: str
    pruned: str
    retrain: str
    retrain_failed: str
    unspent: str
    seconds: str
    overhead: str
    images_per_second: str
    memory: str
    utilization: str


@dataclass(frozen=True, slots=True)
class SearchRow:
    """The search algorithm of an arm and the outcome of its proposals."""

    arm: str
    searcher: str
    complete: str
    failed: str
    pruned: str
    replicates: str
    infeasible: str
    ended_by: str


@dataclass(frozen=True, slots=True)
class FrontRow:
    """A trial on the Pareto front of an arm with several objectives."""

    arm: str
    hypervolume: str
    trial: str
    values: str


@dataclass(frozen=True, slots=True)
class BlocksRow:
    """What the networks of an arm that skips blocks keep, mean over seeds unless it says otherwise."""

    arm: str
    blocks: str
    paths: str
    macs: str
    share: str
    policy: str


@dataclass(frozen=True, slots=True)
class GroupAgreementRow:
    """Agreement of an arm's groups of classes with known ones."""

    reference: str
    arm: str
    seeds: str
    mean: str
    shuffled: str
    p: str


@dataclass(frozen=True, slots=True)
class UniqueAnswersRow:
    """How many test images only this arm classifies correctly, and how many only this arm does not."""

    arm: str
    seeds: str
    only_correct: str
    only_incorrect: str


@dataclass(frozen=True, slots=True)
class MembershipsRow:
    """To which ends the membership probabilities of an arm came."""

    arm: str
    seeds: str
    summary: str


def structure_rows(document: ComparisonDocument) -> list[StructureRow]:
    """Return the layers of every exported network that is not its plain dense backbone, learned ones first."""
    rows = []
    for name, told in _structures(document).items():
        for number, layer in enumerate(told.exported.layers):
            nodes = f"{layer.nodes:,}" + (f" of {layer.dense_nodes:,}" if layer.dense_nodes is not None else "")
            first = number == 0
            rows.append(
                StructureRow(
                    name if first else "",
                    told.summary if first else "",
                    layer.name,
                    nodes,
                    str(layer.groups),
                    f"{layer.density:.3g}",
                )
            )
    return rows


def memberships_rows(document: ComparisonDocument) -> list[MembershipsRow]:
    """Return to which ends the membership probabilities of every arm came that learned some."""
    return [
        MembershipsRow(name, str(arm.memberships.seeds), arm.memberships.summary)
        for name, arm in in_order(document).items()
        if arm.memberships is not None
    ]


def branch_rows(view: ReportView, document: ComparisonDocument) -> list[BranchRow]:
    """Return the branches of every exported network that has some."""
    rows = []
    for name, told in _structures(document).items():
        names = view.names_of(told.exported.layers[-1].nodes)
        for branch in told.exported.branches if told.exported.is_branched else ():
            classes = ", ".join(names[label] for label in branch.classes)
            own = (_count(branch.exclusive_macs), _count(branch.exclusive_parameters))
            rows.append(BranchRow(name, str(branch.cluster), *own, classes or "none"))
    return rows


def _structures(document: ComparisonDocument) -> dict[str, ArmStructure]:
    told = {name: arm.structure for name, arm in in_order(document).items()}
    changed = {
        name: found
        for name, found in told.items()
        if found is not None and (found.learned or found.exported.is_branched or found.exported.removed)
    }
    return dict(sorted(changed.items(), key=lambda item: document.arms[item[0]].role != "learned"))


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def cost_rows(view: ReportView, document: ComparisonDocument) -> list[CostRow]:
    """Return what every arm spent, by phase, and how much of it went to failed and pruned trials."""
    return [_cost_row(view, name, arm) for name, arm in in_order(document).items()]


def _cost_row(view: ReportView, name: str, arm: ArmResult) -> CostRow:
    cost = arm.cost
    seconds = cost.search.seconds + cost.retrain.seconds + cost.overhead_seconds

    def lost(phase: str, state: str) -> str:
        trials = (t for t in view.trials if (t.arm, t.phase, t.state) == (name, phase, state))
        return _share(sum(trial.sample_passes for trial in trials), cost.sample_passes)

    return CostRow(
        arm=name,
        passes=f"{cost.sample_passes:,}",
        search=_share(cost.search.sample_passes, cost.sample_passes),
        failed=lost("search", "failed"),
        pruned=lost("search", "pruned"),
        retrain=_share(cost.retrain.sample_passes, cost.sample_passes),
        retrain_failed=lost("retrain", "failed"),
        unspent=f"{cost.forfeited_sample_passes:,}",
        seconds=f"{seconds:,.1f}",
        overhead=_share(cost.overhead_seconds, seconds),
        images_per_second=f"{arm.usage.images_per_second:,.0f}" if arm.usage else ABSENT,
        memory=_memory(arm.usage),
        utilization=f"{arm.usage.utilization:.0%}" if arm.usage and arm.usage.utilization is not None else ABSENT,
    )


def devices(document: ComparisonDocument) -> str:
    """Return the names of the devices that the study was trained on."""
    names = {name for arm in document.arms.values() if arm.usage for name in arm.usage.devices}
    return ", ".join(sorted(names)) or "devices that were not recorded"


def _memory(usage: ArmUsage | None) -> str:
    """Return the peak memory of an arm's trainings: of the accelerator where there is one, else of the process."""
    if usage is None:
        return ABSENT
    held = usage.host_bytes if usage.device_bytes is None else usage.device_bytes
    return f"{held / 1e9:.2f} GB"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else ABSENT


def search_rows(view: ReportView, document: ComparisonDocument) -> list[SearchRow]:
    """Return how every arm was searched and what ended its search."""
    arms_of_study = view.study.get("arms", {})

    def count(name: str, state: str) -> str:
        return str(sum((t.arm, t.phase, t.state) == (name, "search", state) for t in view.trials))

    return [
        SearchRow(
            arm=name,
            searcher=str(arms_of_study.get(name, {}).get("searcher", ABSENT)),
            complete=count(name, "complete"),
            failed=count(name, "failed"),
            pruned=count(name, "pruned"),
            replicates=str(arm.replicates),
            infeasible=str(arm.infeasible),
            ended_by=END_WORDS[arm.ended_by] if arm.ended_by else ABSENT,
        )
        for name, arm in in_order(document).items()
    ]


def front_rows(document: ComparisonDocument) -> list[FrontRow]:
    """Return the Pareto fronts of the arms with several objectives; other arms have no rows."""
    return [
        FrontRow(name, f"{arm.front.hypervolume:.4f}", str(trial.number), _values(arm.front, trial))
        for name, arm in in_order(document).items()
        if arm.front is not None
        for trial in arm.front.trials
    ]


def _values(front: Front, trial: FrontTrial) -> str:
    def shown(name: str, value: float) -> str:
        if name == "accuracy":
            return f"{100 * value:.2f}%"
        if name == "latency_ms":
            return spread_text(value, trial.spreads.get(name) if front.is_measured_together else None)
        return f"{value:,.6g}"

    return ", ".join(f"{name} {shown(name, value)}" for name, value in trial.values.items())


def group_agreement_rows(agreements: Sequence[GroupAgreement]) -> list[GroupAgreementRow]:
    """Return the agreement of every arm with every known grouping."""
    return [
        GroupAgreementRow(
            row.reference,
            row.arm,
            str(len(row.agreement.values)),
            _signed(row.agreement.mean),
            " to ".join(map(_signed, row.agreement.shuffled)),
            f"{row.agreement.p_value:.3f}",
        )
        for row in agreements
    ]


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def unique_answers_rows(arms: Sequence[UniqueAnswers]) -> list[UniqueAnswersRow]:
    """Return, by arm, on how many test images it differs from all other arms."""
    return [
        UniqueAnswersRow(arm.arm, str(arm.seeds), f"{len(arm.only_correct):,}", f"{len(arm.only_incorrect):,}")
        for arm in arms
    ]


def blocks_rows(kept: Mapping[str, Sequence[Kept]]) -> list[BlocksRow]:
    """Return the table of the blocks that images keep."""
    largest = max((model.full for models in kept.values() for model in models), default=1)
    return [_blocks_row(arm, models, largest) for arm, models in kept.items()]


def _blocks_row(arm: str, models: Sequence[Kept], largest: int) -> BlocksRow:
    count = len(models)
    used = [model.keep.sum(axis=1) for model in models]
    mean, sd = sum(float(u.mean()) for u in used) / count, sum(float(u.std()) for u in used) / count
    macs = sum(model.macs for model in models) / count
    return BlocksRow(
        arm=arm,
        blocks=f"{mean:.2f} ± {sd:.2f} of {models[0].keep.shape[1]}",
        paths=", ".join(f"{len({row.tobytes() for row in model.keep}):,}" for model in models),
        macs=f"{macs:,.0f}",
        share=f"{macs / largest:.1%}",
        policy=f"{sum(model.policy / model.full for model in models) / count:.1%}",
    )
