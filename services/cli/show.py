"""``nas-blockout show``: where a study stands, its trials, and what it has cost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.console import USAGE, JsonOption, fail, installation, print_json, print_line, print_table, table
from services.cli.models import show_model

_COSTS = ("arm", "phase", "trials", "failed", "pruned", "passes", "failed %", "pruned %", "seconds", "proposing")
_TRIALS = ("trial", "arm", "phase", "seed", "state", "validation", "test", "passes", "seconds", "reason")


def show(
    study: Annotated[str, typer.Argument(help="Name of a study in the store, or the folder of an exported model.")],
    as_json: JsonOption = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only trials that failed, with their reasons.")] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the architecture of an exported model into this .svg or .png file.")
    ] = None,
) -> None:
    """Show a study: its state, its trials, what they cost, errors on corrupted images if any, what ended each arm.

    The folder of an exported model is shown as a tree: layers, groups, their classes, nodes, parameters and MACs.
    """
    if (folder := Path(study)).is_dir() and ("/" in study or (folder / "verification.json").exists()):
        show_model(folder, as_json=as_json, figure=figure)
        return
    if figure is not None:
        fail(USAGE, f"--figure draws an exported model, and {study} is no folder of one; see `nas-blockout export`")
    from services.analysis.verdict import corruption_errors
    from services.budget.accounting import END_WORDS, current, ends
    from services.finalize.finalize import flat
    from services.store import Store
    from services.study_config.schema import parse_resolved

    with Store.open(installation().store_url) as store:
        row, trials, spent = store.study(study), store.trials(study), store.spent(study)
    ended = ends(parse_resolved(row.config), {arm: [t for t in trials if t.arm == arm] for arm in row.arms})
    proposed = {arm: _counts(trial for trial in trials if trial.arm == arm) for arm in row.arms}
    means = corruption_errors_of(current(trials))
    chosen = [trial for trial in trials if not failed or trial.state == "failed"]
    if as_json:
        costs = {"cost": [_cost_json(each) for each in spent], "ended_by": ended, "proposed": proposed}
        costs |= {"corruption_error": means} if means else {}
        print_json({**study_json(row), **costs, "trials": [flat(trial) for trial in chosen]})
        return
    state = "interrupted" if row.interrupted else row.state
    print_line(f"study {row.name}: {state}" + (f" ({row.error})" if row.error else ""))
    print_table(table(_TRIALS, map(_trial_cells, chosen)))
    print_table(table(_COSTS, _costs(spent), title="cost"))
    if means:
        print_line(corruption_errors(means))
    for arm, end in ended.items():
        course = f"its search was ended by {END_WORDS[end]}" if end else "its search goes on"
        print_line(f"{arm}: {course}{_proposed(proposed[arm])}")


def corruption_errors_of(trials: Iterable[Any]) -> dict[str, float]:
    """Return by arm the mean corruption error of its retrained models; nothing for arms that have none."""
    from services.analysis.robustness import error_of

    found: dict[str, list[float]] = {}
    for trial in trials:
        if trial.phase == "retrain" and trial.state == "complete" and (trial.result or {}).get("robustness"):
            found.setdefault(trial.arm, []).append(error_of(trial.result["robustness"]))
    return {arm: sum(errors) / len(errors) for arm, errors in found.items()}


def study_json(row: Any) -> dict[str, Any]:
    """Return a study of the store as plain JSON types."""
    return {
        "name": row.name,
        "state": row.state,
        "created_at": row.created_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        "interrupted": row.interrupted,
    }


def _counts(trials: Iterable[Any]) -> dict[str, int]:
    """Return how many trials repeat an architecture, and how many proposals exceeded a constraint."""
    each = list(trials)
    return {
        "replicates": sum(trial.replicate_of is not None for trial in each),
        "infeasible": sum(len(trial.params.get("infeasible", ())) for trial in each),
    }


def _proposed(counts: dict[str, int]) -> str:
    words = {
        "replicates": "trials repeated a known architecture",
        "infeasible": "proposals exceeded a constraint and cost nothing",
    }
    return "".join(f"; {count} {words[name]}" for name, count in counts.items() if count)


def _cost_json(spent: Any) -> dict[str, Any]:
    return {name: getattr(spent, name) for name in spent.__slots__ if name != "best"}


def _costs(spent: Iterable[Any]) -> list[tuple[object, ...]]:
    return [
        (
            *(each.arm, each.phase, each.trials, each.failed, each.pruned, f"{each.sample_passes:,}"),
            _share(each.failed_sample_passes, each.sample_passes),
            _share(each.pruned_sample_passes, each.sample_passes),
            *(f"{each.seconds:.1f}", f"{each.suggest_seconds:.2f}"),
        )
        for each in spent
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""


def _trial_cells(trial: Any) -> tuple[object, ...]:
    result = trial.result or {}
    known = (trial.id, trial.arm, trial.phase, trial.seed, trial.state)
    accuracies = (_percent(trial.score), _percent(result.get("test_accuracy")))
    return (*known, *accuracies, f"{trial.sample_passes:,}", f"{trial.seconds:.1f}", trial.reason or "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"
