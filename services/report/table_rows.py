"""Tables of a report beside that of the arms, as texts: cost in shares, agreement, images apart from all others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.analysis.comparison import ArmResult, ComparisonDocument
from services.budget.accounting import END_WORDS
from services.report.answers import Alone
from services.report.classes import Kinship
from services.report.view import ReportView, in_order


@dataclass(frozen=True, slots=True)
class CostRow:
    """What an arm spent: shares are of its sample passes, that of the overhead of its seconds."""

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


@dataclass(frozen=True, slots=True)
class SearchRow:
    """How an arm was searched."""

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
    """A trial of an arm that searched for several objectives, which no other of its trials beats in all of them."""

    arm: str
    hypervolume: str
    trial: str
    values: str


@dataclass(frozen=True, slots=True)
class KinshipRow:
    """Agreement of an arm's groups of classes with known ones."""

    reference: str
    arm: str
    seeds: str
    mean: str
    shuffled: str
    p: str


@dataclass(frozen=True, slots=True)
class AloneRow:
    """How many test images an arm alone gets right, and how many it alone does not."""

    arm: str
    seeds: str
    right: str
    wrong: str


def cost_rows(view: ReportView, document: ComparisonDocument) -> list[CostRow]:
    """Return what every arm spent, by phase, and what of it was lost."""
    return [_cost_row(view, name, arm) for name, arm in in_order(document).items()]


def _cost_row(view: ReportView, name: str, arm: ArmResult) -> CostRow:
    cost = arm.cost
    seconds = cost.search.seconds + cost.retrain.seconds + cost.overhead_seconds

    def lost(phase: str, state: str) -> str:
        found = (t for t in view.trials if (t.arm, t.phase, t.state) == (name, phase, state))
        return _share(sum(trial.sample_passes for trial in found), cost.sample_passes)

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
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else "–"


def search_rows(view: ReportView, document: ComparisonDocument) -> list[SearchRow]:
    """Return how every arm was searched and what ended it."""
    described = view.study.get("arms", {})

    def count(name: str, state: str) -> str:
        return str(sum((t.arm, t.phase, t.state) == (name, "search", state) for t in view.trials))

    return [
        SearchRow(
            arm=name,
            searcher=str(described.get(name, {}).get("searcher", "–")),
            complete=count(name, "complete"),
            failed=count(name, "failed"),
            pruned=count(name, "pruned"),
            replicates=str(arm.replicates),
            infeasible=str(arm.infeasible),
            ended_by=END_WORDS[arm.ended_by] if arm.ended_by else "–",
        )
        for name, arm in in_order(document).items()
    ]


def front_rows(document: ComparisonDocument) -> list[FrontRow]:
    """Return the fronts of the arms that searched for several objectives; of all others nothing."""
    return [
        FrontRow(name, f"{arm.front.hypervolume:.4f}", str(trial.number), _values(trial.values))
        for name, arm in in_order(document).items()
        if arm.front is not None
        for trial in arm.front.trials
    ]


def _values(values: Mapping[str, float]) -> str:
    shown = (f"{100 * value:.2f}%" if name == "accuracy" else f"{value:,.6g}" for name, value in values.items())
    return ", ".join(f"{name} {text}" for name, text in zip(values, shown, strict=True))


def kinship_rows(found: Sequence[Kinship]) -> list[KinshipRow]:
    """Return the agreement of every arm with every known grouping."""
    return [
        KinshipRow(
            each.reference,
            each.arm,
            str(len(each.found.values)),
            _signed(each.found.mean),
            " to ".join(map(_signed, each.found.shuffled)),
            f"{each.found.p_value:.3f}",
        )
        for each in found
    ]


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def alone_rows(found: Sequence[Alone]) -> list[AloneRow]:
    """Return, by arm, how many test images it is alone with."""
    return [AloneRow(each.arm, str(each.seeds), f"{len(each.right):,}", f"{len(each.wrong):,}") for each in found]
