"""Building the comparison of a study from its trials in the store, and from nothing else.

It ranks only what is comparable: arms that spent alike and were retrained with seeds they share. Pairs whose arms did
not spend alike are not tested at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.none import NoneSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.serialization import count_of
from nas_blockout.statistics import significance
from nas_blockout.structure.branching import Structure
from services.analysis.comparison import (
    ArmResult,
    BudgetResult,
    ComparisonDocument,
    Cost,
    Role,
    Spending,
    recommendation_of,
    test_of,
    validation_of,
)
from services.analysis.latency import Latency
from services.analysis.learned_paths import arm_paths
from services.analysis.learned_structure import ArmStructure, arm_memberships, arm_structure
from services.analysis.robustness import RobustnessResult
from services.analysis.searches.pareto import Timed, fronts
from services.analysis.searches.proxy_check import Ranking, RungRanking, winners_ranking
from services.analysis.searches.search_progress import progress_of
from services.analysis.seed_metrics import Accuracy, PairResult, balanced_of, classes_of
from services.analysis.usage import usage_of
from services.budget.accounting import End, compared_in, current, ends, stale
from services.budget.limits import Unit, limits
from services.search.constraints import could_win
from services.study_config.resolved_study import Arm, Study
from services.study_config.search_options import Metric
from services.trial_record import RETRAIN, SEARCH, Trial, TrialKey


def role(arm: Arm) -> Role:
    """Return the role of an arm in the comparison.

    - ``learned``: learns which nodes share a branch and inherits the weights, or which blocks each image needs;
    - ``placebo``: has a structure of the same kind that was shuffled or drawn at random, or a random path;
    - ``ablation``: has one other thing that could explain a gain: its nodes without its branches, one cluster, fixed
      masks, new weights, pruning, a regularizer, one path for all images, the MACs of the learned arm;
    - ``baseline``: another way to a network: dense, searched, or branched by confusions.
    """
    method, distillation = arm.experiment.method, arm.experiment.distillation
    if isinstance(method, BlockDropSettings):
        of_policy: dict[str, Role] = {"learned": "learned", "random": "placebo"}
        unmatched: Role = "baseline" if method.policy == "all" and arm.match is None else "ablation"
        return of_policy.get(method.policy, unmatched)
    if distillation is not None and distillation.placebo != "none":
        return "ablation" if distillation.placebo == "unbranched" else "placebo"
    if isinstance(method, BlockoutSettings):
        scratch = distillation is not None and distillation.weights == "scratch"
        return "learned" if method.clusters > 1 and method.mode != "hard-fixed" and not scratch else "ablation"
    plain = isinstance(method, NoneSettings | DartsSettings) and arm.experiment.pruning is None
    return "ablation" if arm.match is not None or not plain else "baseline"


def family(study: Study) -> list[tuple[str, str]]:
    """Return the pairs that the study tests, fixed before any result: all pairs of arms.

    An arm that learns its structure comes first in its pairs, and its pairs before all others.
    """
    learned = [name for name, arm in study.arms.items() if role(arm) == "learned"]
    return list(combinations([*learned, *(name for name in study.arms if name not in learned)], 2))


def build(
    study: Study,
    trials: Iterable[Trial],
    *,
    latency: Mapping[str, Latency] | None = None,
    search_latency: Mapping[TrialKey, Timed] | None = None,
    structures: Mapping[str, Structure] | None = None,
    rungs: Mapping[str, list[RungRanking]] | None = None,
    extensions: int = 0,
) -> ComparisonDocument:
    """Compare the arms of a study.

    Args:
        study: The resolved study.
        trials: All its trials, failed and pruned ones too.
        latency: Of the exported models, measured together, by arm.
        search_latency: Of search trials, measured together, where an arm searches for it.
        structures: How far the exported networks branch, by arm; where it is left out, what the trials recorded.
        rungs: How early rungs rank, by arm, for which the epochs of trials are needed.
        extensions: How often the study was extended after its result was known.

    Raises:
        ValueError: A trial names no arm of the study, or a retrained model has no test accuracy or has two.
    """
    by_arm = _by_arm(study, trials)
    ended = ends(study, by_arm)
    by_front = fronts(study, by_arm, search_latency)
    searches = progress_of(trial for group in by_arm.values() for trial in group)
    arms = {
        name: _arm(study, arm, by_arm[name], (latency or {}).get(name)).model_copy(
            update={
                "ended_by": ended[name],
                "search": searches.get(name),
                "front": by_front.get(name),
                "rungs": (rungs or {}).get(name),
                "structure": _structure(by_arm[name], (structures or {}).get(name), study.config.metric),
            }
        )
        for name, arm in study.arms.items()
    }
    unfinished = sum(_unfinished(study, group) for group in by_arm.values())
    budget, metric = study.config.budget, study.config.metric
    spent = {unit: _charged(arms, unit) for unit in limits(budget)}
    unit, disagreement = compared_in(spent, ended, budget.tolerance)
    scores = {name: found.by_seed for name, arm in arms.items() if (found := test_of(arm, metric)) is not None}
    pairs = [pair for pair in family(study) if _comparable(pair, scores, spent, ended, budget.tolerance)]
    overlap = significance.overlap_of_folds(study.data.folds)
    pairs = [] if unfinished else pairs  # verdicts of seeds that still run find differences that are not there
    tested = significance.compare(scores, pairs=pairs, overlap=overlap)
    robust = {name: _robust(group) for name, group in by_arm.items()}
    untested = [name for name in arms if name not in scores]
    reason = _reason(unfinished, disagreement, untested, tested.reason)
    results, margin = [PairResult.of(pair) for pair in tested.pairs], study.config.equivalence_margin
    return ComparisonDocument(
        study=study.name,
        budget=BudgetResult(unit=unit, per_arm=limits(budget)[unit], tolerance=budget.tolerance, limits=limits(budget)),
        arms=arms,
        metric=metric,
        pairs=results,
        winners=_winners(study, by_arm, arms),
        ranking=list(tested.ranking) if tested.ranking and reason is None else None,
        ranking_seeds=sorted(set.intersection(*map(set, scores.values()))) if reason is None else [],
        reason=reason,
        extensions=extensions,
        robustness=RobustnessResult.of(robust, pairs=pairs, overlap=overlap),
        folds=study.data.folds,
        equivalence_margin=margin,
        recommendation=None
        if unfinished
        else recommendation_of(arms, results, margin=margin, reason=reason, metric=metric, overlap=overlap),
    )


def _reason(unfinished: int, disagreement: str | None, untested: Sequence[str], other: str | None) -> str | None:
    """Return why there is no ranking, or None where there is one."""
    reasons = [
        f"{count_of(unfinished, 'trial has', 'trials have')} not ended" if unfinished else None,
        disagreement,
        f"no retrained model in {', '.join(untested)}" if untested else None,
        other,
    ]
    return "; ".join(text for text in reasons if text) or None


def _winners(study: Study, by_arm: Mapping[str, Sequence[Trial]], arms: Mapping[str, ArmResult]) -> Ranking | None:
    metric = study.config.metric
    retrained = {name: found.mean for name, arm in arms.items() if (found := validation_of(arm, metric)) is not None}
    return winners_ranking(study, (trial for group in by_arm.values() for trial in group), retrained)


def _by_arm(study: Study, trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    by_arm: dict[str, list[Trial]] = {name: [] for name in study.arms}
    for trial in trials:
        if trial.arm not in by_arm:
            raise ValueError(
                f"trials name an arm of study {study.name!r}, got {trial.arm!r}; known are {sorted(by_arm)}"
            )
        by_arm[trial.arm].append(trial)
    return by_arm


def _arm(study: Study, arm: Arm, every: Sequence[Trial], latency: Latency | None) -> ArmResult:
    trials, replaced = current(every), stale(every)
    models = _models(trials)
    exported = _exported(models, study.config.metric)
    outcome = exported.outcome if exported else {}
    overlap = significance.overlap_of_folds(study.data.folds)
    overhead = sum(trial.charged_seconds - trial.seconds for trial in trials)
    return ArmResult(
        description=arm.description,
        role=role(arm),
        seeds_cover="learning and retraining" if _learns_again(arm) else "retraining",
        trials=len(trials),
        failed=sum(trial.state == "failed" for trial in trials),
        pruned=sum(trial.state == "pruned" for trial in trials),
        replicates=sum(trial.replicate_of is not None for trial in trials),
        infeasible=sum(len(trial.infeasible) for trial in trials),
        missing_seeds=[seed for seed in study.config.retrain.seeds if seed not in models],
        cost=Cost(
            search=_spending(trials, SEARCH),
            retrain=_spending(trials, RETRAIN),
            overhead_seconds=overhead,
            forfeited_sample_passes=_forfeited(trials),
            stale=_spending(replaced, RETRAIN),
        ),
        validation_accuracy=_accuracy(models, "validation_accuracy", overlap),
        test_accuracy=_accuracy(models, "test_accuracy", overlap),
        validation_balanced_accuracy=balanced_of(models, "validation_balanced_accuracy", overlap=overlap),
        test_balanced_accuracy=balanced_of(models, "test_balanced_accuracy", overlap=overlap),
        classes=classes_of(models, overlap=overlap),
        exported_seed=exported.seed if exported else None,
        parameters=outcome.get("parameters"),
        macs=outcome.get("macs"),
        macs_per_seed={str(seed): int(trial.macs or 0) for seed, trial in models.items()},
        latency_ms=latency,
        architecture=outcome.get("architecture_hash"),
        memberships=arm_memberships(models.values()),
        notes=list(dict.fromkeys(note for trial in trials for note in trial.outcome.get("notes") or ())),
        usage=usage_of(trials),
        paths=arm_paths(models),
        settings=dict((exported.experiment if exported else None) or arm.experiment.to_json()),
    )


def _learns_again(arm: Arm) -> bool:
    """Whether every seed learns its structure, or its path, anew."""
    method = arm.experiment.method
    return arm.experiment.derivation is not None or (isinstance(method, BlockDropSettings) and method.learns)


def _exported(models: Mapping[int, Trial], metric: Metric) -> Trial | None:
    return max(models.values(), key=lambda trial: (_result(trial, f"validation_{metric}"), -trial.seed), default=None)


def _structure(every: Sequence[Trial], known: Structure | None, metric: Metric) -> ArmStructure | None:
    models = _models(current(every))
    return arm_structure(list(models.values()), _exported(models, metric), known)


def _forfeited(trials: Sequence[Trial]) -> int:
    """Sample passes that an arm had and could not use."""

    def unused(state: str) -> int:
        return sum(max(0, trial.planned - trial.sample_passes) for trial in trials if trial.state == state)

    whole = max((trial.planned for trial in trials), default=0)
    # What early stopping saves buys further trials, but only whole ones: less than one training is left over.
    return unused("failed") + min(unused("pruned"), max(0, whole - 1))


def _unfinished(study: Study, trials: Sequence[Trial]) -> int:
    """Count the trials of an arm that run or wait, and the retrainings that its winner still has to get."""
    waiting = sum(not trial.ended for trial in trials)
    if not any(could_win(trial, study.arms[trial.arm].rules.constraints) for trial in trials):
        return waiting
    return waiting + len(set(study.config.retrain.seeds) - {t.seed for t in trials if t.phase == RETRAIN})


def _models(trials: Sequence[Trial]) -> dict[int, Trial]:
    models: dict[int, Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        if trial.is_model:
            if trial.seed in models:
                raise ValueError(f"each seed is retrained and tested once, got seed {trial.seed} of {trial.arm} twice")
            models[trial.seed] = trial
    return models


def _robust(trials: Sequence[Trial]) -> dict[int, Mapping[str, Any]]:
    """Return by seed what the retrained models of an arm gave on corrupted images."""
    results = {seed: trial.outcome.get("robustness") for seed, trial in _models(current(trials)).items()}
    return {seed: result for seed, result in results.items() if result}


def _result(trial: Trial, key: str) -> float:
    value = trial.outcome.get(key)
    if value is None:
        raise ValueError(f"a retrained model has a {key}, seed {trial.seed} of {trial.arm} has none")
    return float(value)


def _accuracy(models: Mapping[int, Trial], key: str, overlap: float) -> Accuracy | None:
    if not models:
        return None
    return Accuracy.of({seed: _result(trial, key) for seed, trial in models.items()}, overlap=overlap)


def _spending(trials: Sequence[Trial], phase: str) -> Spending:
    own = [trial for trial in trials if trial.phase == phase]
    return Spending(sample_passes=sum(t.sample_passes for t in own), seconds=sum(t.seconds for t in own))


def _charged(arms: Mapping[str, ArmResult], unit: Unit) -> dict[str, float]:
    """Return what each arm spent in a unit of the budget.

    Passes that an arm forfeited count as spent, up to the largest spending of all arms: otherwise an arm whose trials
    failed could not be compared although it had the same budget.
    """
    if unit == "seconds":
        return {name: arm.cost.seconds for name, arm in arms.items()}
    if unit == "trainings":
        return {name: float(arm.trials) for name, arm in arms.items()}
    most = max(arm.cost.sample_passes for arm in arms.values())
    return {
        name: float(min(most, arm.cost.sample_passes + arm.cost.forfeited_sample_passes)) for name, arm in arms.items()
    }


def _comparable(
    pair: tuple[str, str],
    scores: Mapping[str, Mapping[int, float]],
    spent: Mapping[Unit, Mapping[str, float]],
    ended: Mapping[str, End | None],
    tolerance: float,
) -> bool:
    a, b = pair
    if a not in scores or b not in scores or not scores[a].keys() & scores[b].keys():
        return False
    both = {unit: {name: costs[name] for name in pair} for unit, costs in spent.items()}
    return compared_in(both, {name: ended[name] for name in pair}, tolerance)[1] is None
