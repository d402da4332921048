"""Tables of a report beside that of the arms, as texts: cost in shares, agreement, images apart from all others."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.comparison import ArmResult, ComparisonDocument
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
