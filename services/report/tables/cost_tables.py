"""The tables of what a study did: cost, searches, Pareto fronts, trials, environment."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nas_blockout.serialization import count_of
from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.latency import spread_text
from services.analysis.searches.pareto import Front, FrontTrial
from services.analysis.searches.proxy_check import Ranking
from services.analysis.usage import ArmUsage
from services.budget.accounting import END_WORDS
from services.report.tables.report_table import Cell, Column, Table, amount, count, share, table, without
from services.report.view import ABSENT, ReportView, in_order, percent
from services.trial_record import Trial

MOST_TRIALS = 10_000  # that the page lists; the files have all of them


def cost_table(view: ReportView, document: ComparisonDocument) -> Table:
    """Return what every arm spent, by phase, and how much of it went to failed and pruned trials.

    Columns in which nothing stands are left out: what was lost where nothing was, what was not measured.
    """
    is_whole = not any(trial.state in ("failed", "pruned") for trial in view.trials)
    lost = ("search, failed", "search, pruned", "retraining, failed", "planned but unspent")
    shown = table(
        "cost",
        "Cost",
        "What each arm spent. Overhead (proposing trials, deriving and verifying networks) is a share of the arm's "
        "seconds, all other shares are of its sample passes. Search and retraining include failed and pruned trials. "
        "Images per second are sample passes over the seconds of training and validation, the median over trials; "
        "memory is the peak of one training on its accelerator, or without one that of the whole worker process. "
        f"Trainings ran on {_devices(document)}.{' No trial failed or was pruned.' if is_whole else ''} "
        "Data: comparison.json, trials.csv.",
        [
            Column("arm"),
            "passes",
            *(Column(part, unit="%") for part in ("search", "search, failed", "search, pruned")),
            *(Column(part, unit="%") for part in ("retraining", "retraining, failed")),
            "planned but unspent",
            "seconds",
            Column("overhead", unit="%"),
            "images/s",
            Column("memory", unit="GB"),
            Column("GPU busy", unit="%"),
        ],
        [_cost_row(view, name, arm) for name, arm in in_order(document).items()],
    )
    shown = without(shown, ("images/s", "memory", "GPU busy"), unless=lambda cell: cell.value is not None)
    return without(shown, lost if is_whole else (), unless=lambda cell: bool(cell.value))


def _cost_row(view: ReportView, name: str, arm: ArmResult) -> list[Cell]:
    cost, usage = arm.cost, arm.usage
    seconds = cost.search.seconds + cost.retrain.seconds + cost.overhead_seconds

    def lost(phase: str, state: str) -> Cell:
        trials = (t for t in view.trials if (t.arm, t.phase, t.state) == (name, phase, state))
        return share(sum(trial.sample_passes for trial in trials), cost.sample_passes)

    return [
        Cell(name),
        count(cost.sample_passes),
        share(cost.search.sample_passes, cost.sample_passes),
        lost("search", "failed"),
        lost("search", "pruned"),
        share(cost.retrain.sample_passes, cost.sample_passes),
        lost("retrain", "failed"),
        count(cost.forfeited_sample_passes),
        amount(seconds),
        share(cost.overhead_seconds, seconds),
        amount(usage.images_per_second if usage else None, ",.0f"),
        _memory(usage),
        share(usage.utilization, 1) if usage and usage.utilization is not None else Cell(ABSENT),
    ]


def _devices(document: ComparisonDocument) -> str:
    names = {name for arm in document.arms.values() if arm.usage for name in arm.usage.devices}
    return ", ".join(sorted(names)) or "devices that were not recorded"


def _memory(usage: ArmUsage | None) -> Cell:
    """Return the peak memory of an arm's trainings: of the accelerator where there is one, else of the process."""
    if usage is None:
        return Cell(ABSENT)
    held = (usage.host_bytes if usage.device_bytes is None else usage.device_bytes) / 1e9
    return Cell(f"{held:.2f} GB", held)


def search_tables(view: ReportView, document: ComparisonDocument) -> Iterator[Table]:
    """Yield how every arm was searched and what ended its search, and the Pareto fronts of several objectives."""
    arms_of_study = view.study.get("arms", {})

    def counted(name: str, state: str) -> Cell:
        return count(sum((t.arm, t.phase, t.state) == (name, "search", state) for t in view.trials))

    yield table(
        "searches",
        "Searches",
        "Search algorithm of each arm and the outcome of its proposals. A replicate repeats the architecture of an "
        "earlier trial of its arm; an infeasible proposal violates a constraint and is never trained. Data: "
        "comparison.json, trials.csv.",
        [
            Column("arm"),
            Column("search algorithm", is_text=True),
            *("complete", "failed", "pruned", "replicates", "infeasible"),
            Column("ended by", is_text=True),
        ],
        [
            [
                Cell(name),
                Cell(_search_of(arms_of_study.get(name, {}))),
                *(counted(name, state) for state in ("complete", "failed", "pruned")),
                count(arm.replicates),
                count(arm.infeasible),
                Cell(END_WORDS[arm.ended_by] if arm.ended_by else ABSENT),
            ]
            for name, arm in in_order(document).items()
        ],
    )
    yield from _reached(document)
    yield from _rungs(document)
    yield from _fronts(document)


def _search_of(arm: Mapping[str, Any]) -> str:
    """Return the search algorithm of a resolved arm, and the earlier study whose trials it began with."""
    searcher, beginning = str(arm.get("searcher", ABSENT)), arm.get("warm_start")
    if beginning is None:
        return searcher
    begun = count_of(len(beginning["trials"]), "trial")
    return f"{searcher}, begun with the best {begun} of study {beginning['study']}, whose search is not charged here"


def _reached(document: ComparisonDocument) -> Iterator[Table]:
    """Yield how soon each search had what the others ended with, if more than one had several trials."""
    searches = {name: arm.search for name, arm in in_order(document).items() if arm.search is not None}
    if len(searches) < 2:
        return
    yield table(
        "reached",
        "Sample passes until a search had what another ended with",
        "Sample passes after which the search of the row first had the best validation "
        f"{document.metric_words} with which the search of the column ended, or nothing if it never had. Each arm was "
        "searched once, and the best of many trials is partly chance: a hint, no verdict. Data: comparison.json, "
        "arms.*.search.",
        [Column("arm"), Column(f"best validation {document.metric_words}", unit="%"), "all passes", *searches],
        [
            [
                Cell(name),
                Cell(ABSENT) if (best := search.best_validation_score) is None else Cell(percent(best), 100 * best),
                count(search.sample_passes),
                *(count(search.reaches.get(other)) if other != name else Cell("") for other in searches),
            ]
            for name, search in searches.items()
        ],
    )


def _rungs(document: ComparisonDocument) -> Iterator[Table]:
    """Yield how early rungs rank, and how the winners of the searches do, if it is known of any."""
    rows: list[list[Cell | str]] = [
        [Cell(name), Cell(f"after {count_of(rung.epochs, 'epoch')}"), count(rung.reached), *_ranked(rung)]
        for name, arm in in_order(document).items()
        for rung in arm.rungs or ()
    ]
    if document.winners is not None and document.winners.tau is not None:
        rows.append([Cell("all arms"), Cell("winning trial"), Cell(ABSENT), *_ranked(document.winners)])
    if rows:
        yield table(
            "rungs",
            "Whether early scores rank as late ones",
            f"Rank correlation of the validation {document.metric_words} after an early rung and at the end, over the "
            "search trials that reached it, with 95% intervals from resampled trials: 1 is the same order, 0 is none. "
            "Early stopping has chosen these trials by their early score, so that they differ less in it than all "
            "trials: over all of them the agreement would as a rule be higher. The last row compares the winning trial "
            "of each arm with the mean of its retrainings. With fewer than 5 nothing is said. Data: comparison.json, "
            "arms.*.rungs and winners.",
            [
                Column("arm"),
                Column("early score", is_text=True),
                *("trials that reached it", "compared"),
                Column("Kendall's tau", small="95% interval of tau"),
                Column("Spearman's rho", small="95% interval of rho"),
            ],
            rows,
        )


def _ranked(found: Ranking) -> list[Cell]:
    def shown(value: float | None, interval: tuple[float, float] | None) -> Cell:
        if value is None:
            return Cell(ABSENT)
        ends = [] if interval is None else [format(end, ".2f").replace("-", "\N{MINUS SIGN}") for end in interval]
        return replace(amount(value, ".2f"), small=" to ".join(ends), small_value=interval)

    return [count(found.n), shown(found.tau, found.tau_ci95), shown(found.spearman, found.spearman_ci95)]


def _fronts(document: ComparisonDocument) -> Iterator[Table]:
    rows = [
        [
            Cell(name),
            amount(arm.front.hypervolume, ".4f"),
            count(trial.number),
            Cell(_objectives(arm.front, trial)),
        ]
        for name, arm in in_order(document).items()
        if arm.front is not None
        for trial in arm.front.trials
    ]
    if rows:
        yield table(
            "fronts",
            "Pareto fronts of the searches",
            "Pareto front of each search on validation data: the trials that no other trial of the arm dominates. The "
            "hypervolume is the share that they dominate of the box between the ideal point and accuracy 0 at the "
            "highest costs of all such arms. Data: comparison.json, arms, front.",
            [Column("arm"), "hypervolume", "trial", Column("objectives", is_text=True)],
            rows,
        )


def _objectives(front: Front, trial: FrontTrial) -> str:
    def shown(name: str, value: float) -> str:
        if name == "accuracy":
            return f"{100 * value:.2f}%"
        if name == "latency_ms":
            return spread_text(value, trial.spreads.get(name) if front.is_measured_together else None)
        return f"{value:,.6g}"

    return ", ".join(f"{name} {shown(name, value)}" for name, value in trial.values.items())


def trials_table(view: ReportView) -> Table:
    """Return all trials."""
    return table(
        "trials",
        "All trials",
        "All are in trials.csv. Accuracies in %.",
        [
            Column("arm"),
            Column("phase", is_text=True),
            *("trial", "seed"),
            Column("state", is_text=True),
            Column("validation", unit="%"),
            Column("test", unit="%"),
            *("passes", "seconds"),
            Column("parameters", is_prose=True),
        ],
        [_trial_row(trial) for trial in view.trials],
        style="small",
    )


def _trial_row(trial: Trial) -> list[Cell]:
    def accuracy(value: float | None) -> Cell:
        return Cell(ABSENT) if value is None else Cell(percent(value), 100 * value)

    return [
        *_identity(trial),
        Cell(trial.state),
        accuracy(trial.score),
        accuracy(trial.outcome.get("test_accuracy")),
        count(trial.sample_passes),
        amount(trial.seconds),
        Cell(", ".join(f"{key} {value}" for key, value in leaves(trial.values)) or ABSENT),
    ]


def _identity(trial: Trial) -> list[Cell]:
    # Plain digits: a number or a seed is a name.
    numbers = [Cell(str(number), number) for number in (trial.number, trial.seed)]
    return [Cell(trial.arm), Cell(trial.phase), *numbers]


def lost_tables(view: ReportView) -> Iterator[Table]:
    """Yield the failed and pruned trials with their reasons, if there are any."""
    lost = [trial for trial in view.trials if trial.state in ("failed", "pruned")]
    if not lost:
        return
    yield table(
        "lost-trials",
        "Failed and pruned trials",
        "Failed and pruned trials. Their cost counts toward the budget of their arm.",
        [
            Column("arm"),
            Column("phase", is_text=True),
            *("trial", "seed"),
            Column("state", is_text=True),
            "passes",
            Column("reason", is_prose=True),
        ],
        [
            [*_identity(trial), Cell(trial.state), count(trial.sample_passes), Cell(trial.reason or ABSENT)]
            for trial in lost
        ],
    )


def environment_table(view: ReportView) -> Table:
    """Return what the results may depend on besides the study file."""
    return table(
        "environment",
        "Environment",
        "What the results may depend on besides the study file (environment.json).",
        [Column("item"), Column("value", is_text=True)],
        [[name, value] for name, value in leaves(view.environment)],
        style="small",
    )


def leaves(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return the leaves of a document by dotted name."""
    if not isinstance(value, Mapping):
        return [(prefix, ABSENT if value is None else f"{value:.6g}" if isinstance(value, float) else str(value))]
    return [leaf for key, item in value.items() for leaf in leaves(item, f"{prefix}.{key}" if prefix else str(key))]
