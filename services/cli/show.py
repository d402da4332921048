"""``nas-blockout show``: the state of a study, its trials and their cost."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_blockout.serialization import count_of
from services.cli import lazy_modules as lazy
from services.cli.console import (
    USAGE,
    JsonOption,
    existing_folder,
    fail,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)
from services.cli.help.completion import stored_studies
from services.cli.models import show_model

if TYPE_CHECKING:
    from services.budget.accounting import End
    from services.settings import Settings
    from services.store import QueueSummary, SpentRow, Store, StudyRow, StudySummary
    from services.trial_record import Trial

TRIALS_LISTED, TRIALS_IN_JSON = 30, 1000
_TRIAL_COLUMNS = (
    *("trial", "arm", "phase", "seed", "state", "validation", "test"),
    *("sample passes", "seconds", "reason"),
)
WAITING_COLUMNS = ("study", "owner", "place", "priority", "expected start (UTC)", "reason")
_COST_COLUMNS = (
    *("arm", "phase", "trials", "failed", "pruned", "sample passes", "in failed trials", "in pruned trials"),
    *("training seconds", "search seconds"),
)


def show(
    study: Annotated[
        str,
        typer.Argument(
            help="Name of a study in the store, or folder of an exported model.", autocompletion=stored_studies
        ),
    ],
    as_json: JsonOption = False,
    failed: Annotated[bool, typer.Option("--failed", help="List only failed trials, with their reasons.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"List at most so many trials, the latest ones; 0 lists all. "
            f"[default: {TRIALS_LISTED}; with --json {TRIALS_IN_JSON:,}]",
        ),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the architecture of an exported model to this .svg or .png file.")
    ] = None,
) -> None:
    """Show a study: its state, verdict, latest trials, cost, and why each search ended.

    Also the errors on corrupted images, if they were tested, and of arms that learn a structure to which end the
    membership probabilities of each layer came.

    For the folder of an exported model, show how far it branches, and its layers and groups as a tree.
    """
    folder = Path(study)
    if "/" in study or (folder.is_dir() and (folder / "verification.json").exists()):
        show_model(existing_folder(folder), as_json=as_json, figure=figure)
        return
    if figure is not None:
        fail(USAGE, f"--figure draws an exported model, but {study} is no folder of one; see `nas-blockout export`")
    settings = installation()
    with lazy.store.Store.open(settings.store_url) as store:
        waiting = _waiting(store, study)
        if waiting is not None and not store.has_study(study):
            print_json(waiting_json(waiting)) if as_json else print_line(_waiting_line(waiting))
            return
        row, costs = store.study(study), store.spent(study)
        trials, listed, left_out = _read(store, study, failed=failed, limit=_most_trials(limit, as_json=as_json))
    by_arm = {arm: [trial for trial in trials if trial.arm == arm] for arm in row.arms}
    ends, current = _ends(row, by_arm), lazy.accounting.current(trials)
    proposals = {arm: _proposal_counts(arm_trials) for arm, arm_trials in by_arm.items()}
    errors, memberships = corruption_errors_of(current), memberships_of(current)
    if as_json:
        facts: dict[str, Any] = {"cost": [_cost_json(cost) for cost in costs], "ended_by": ends, "proposed": proposals}
        facts |= {"corruption_error": errors} if errors else {}
        facts |= {"waiting": waiting_json(waiting)} if waiting is not None else {}
        facts |= {"memberships": memberships} if memberships else {}
        facts |= {"trials_left_out": left_out} if left_out else {}
        print_json({**study_json(row), **facts, "trials": [lazy.trial_table.row_of(trial) for trial in listed]})
        return
    _print_head(settings, row, waiting)
    tested = f"test_{row.config.get('metric', 'accuracy')}"
    print_table(table(_TRIAL_COLUMNS, [_trial_cells(trial, tested) for trial in listed]))
    if left_out:
        print_line(f"{count_of(left_out, 'earlier trial')} not listed: `--limit 0` lists all")
    print_table(table(_COST_COLUMNS, map(_cost_cells, costs), title="cost"))
    if errors:
        print_line(lazy.verdict.corruption_errors(errors))
    for arm, told in memberships.items():
        print_line(f"{arm}: {told}")
    for arm, end in ends.items():
        status = f"search ended by {lazy.accounting.END_WORDS[end]}" if end else "search has not ended"
        print_line(f"{arm}: {status}{_proposal_text(proposals[arm])}")


def _most_trials(limit: int | None, *, as_json: bool) -> int:
    if limit is not None:
        return limit
    return TRIALS_IN_JSON if as_json else TRIALS_LISTED


def _print_head(settings: "Settings", row: "StudyRow", waiting: "QueueSummary | None") -> None:
    """Print the state of a study and, once it has ended, what it shows and which model to ship.

    The verdict is missing where the files of the study are on another machine.
    """
    state = "interrupted" if row.interrupted else row.state
    print_line(f"study {row.name}: {state}" + (f" ({row.error})" if row.error else ""))
    if waiting is not None:
        print_line(_waiting_line(waiting))
    path = settings.folder(row.name) / "comparison.json"
    if row.state != "complete" or not path.is_file():
        return
    try:
        comparison = lazy.comparison.ComparisonDocument.read(path)
    except (OSError, ValueError) as error:  # the rest is in the store
        log(f"note: {path} cannot be read, run the study again to write it anew: {str(error).splitlines()[0]}")
        return
    print_table(lazy.progress.verdict_and_model(comparison))
    for arm, found in comparison.arms.items():
        if found.rungs:
            print_line(lazy.proxy_check.told(arm, found.rungs))


def _read(store: "Store", study: str, *, failed: bool, limit: int) -> "tuple[list[Trial], Sequence[Trial], int]":
    """Return all trials of a study without what takes much memory, those to list, and how many are not listed."""
    trials: list[Trial] = []
    listed: deque[Trial] = deque(maxlen=limit or None)
    count = 0
    for trial in store.each_trial(study, experiments=False):  # which are most of what would be read
        if not failed or trial.state == "failed":
            listed.append(trial)
            count += 1
        trials.append(trial if trial.phase == "retrain" else trial.light())
    return trials, listed, count - len(listed)


def waiting_json(row: "QueueSummary") -> dict[str, Any]:
    """Return a study that waits in the service as plain JSON types."""
    moments = {"submitted_at": row.created_at, "expected_at": row.expected_at}
    return {
        "name": row.study,
        "state": "waiting",
        "owner": row.owner,
        "priority": row.priority,
        "position": row.position,
        "reason": row.message,
        **{key: moment.isoformat() if moment else None for key, moment in moments.items()},
    }


def waiting_cells(row: "QueueSummary") -> tuple[object, ...]:
    """Return the cells of a study that waits in the service; see `WAITING_COLUMNS`."""
    place = row.position if row.position is not None else "-"
    expected = f"{row.expected_at:%Y-%m-%d %H:%M}" if row.expected_at else ""
    return (row.study, row.owner, place, row.priority, expected, row.message)


def _waiting(store: "Store", study: str) -> "QueueSummary | None":
    """Return a study of the service that waits; None if it does not, or was never submitted."""
    row = store.queued_study(study)
    return row if row is not None and row.state == "queued" else None


def _waiting_line(row: "QueueSummary") -> str:
    place = f", {row.position} in line" if row.position is not None else ""
    expected = f", expected to start at {row.expected_at:%Y-%m-%d %H:%M} UTC" if row.expected_at else ""
    return f"study {row.study}: waiting in the service{place}{expected}" + (f": {row.message}" if row.message else "")


def _ends(row: "StudyRow", trials: Mapping[str, "list[Trial]"]) -> Mapping[str, "End | None"]:
    """Return what ended the search of each arm; empty, with a note, if this release cannot read the study."""
    try:
        study = lazy.resolution.stored_study(row.config, source=row.name)
    except lazy.errors.StudyError as error:
        log(f"note: this release cannot read the settings of the study as they are stored: {error}")
        return {}
    return lazy.accounting.ends(study, trials)


def corruption_errors_of(trials: Iterable["Trial"]) -> dict[str, float]:
    """Return by arm the mean corruption error in [0, 1] of its retrained models; arms that have none are left out."""
    errors: dict[str, list[float]] = {}
    for trial in trials:
        if trial.phase == "retrain" and trial.state == "complete" and trial.result and trial.result.get("robustness"):
            errors.setdefault(trial.arm, []).append(lazy.robustness.error_of(trial.result["robustness"]))
    return {arm: sum(values) / len(values) for arm, values in errors.items()}


def memberships_of(trials: Iterable["Trial"]) -> dict[str, str]:
    """Return by arm to which ends the membership probabilities of its retrained models came; others are left out."""
    by_arm: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.is_model and trial.outcome.get("membership_ends"):
            by_arm.setdefault(trial.arm, []).append(trial)
    found = {arm: lazy.learned_structure.arm_memberships(models) for arm, models in by_arm.items()}
    return {arm: memberships.summary for arm, memberships in found.items() if memberships is not None}


def study_json(row: "StudyRow | StudySummary") -> dict[str, Any]:
    """Return a study of the store as plain JSON types."""
    return {
        "name": row.name,
        "state": row.state,
        "created_at": row.created_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        "interrupted": row.interrupted,
    }


def _proposal_counts(trials: Iterable["Trial"]) -> dict[str, int]:
    """Return how many trials repeat an architecture, and how many proposals exceeded a constraint."""
    trials = list(trials)
    return {
        "replicates": sum(trial.replicate_of is not None for trial in trials),
        "infeasible": sum(len(trial.infeasible) for trial in trials),
    }


def _proposal_text(counts: dict[str, int]) -> str:
    words = {
        "replicates": "trials repeated a known architecture",
        "infeasible": "proposals exceeded a constraint (they cost nothing)",
    }
    return "".join(f"; {count} {words[name]}" for name, count in counts.items() if count)


def _cost_json(cost: "SpentRow") -> dict[str, Any]:
    # `best` is there for the progress that the service shows; this command lists the score of every trial.
    return {name: getattr(cost, name) for name in cost.__slots__ if name != "best"}


def _cost_cells(cost: "SpentRow") -> tuple[object, ...]:
    return (
        *(cost.arm, cost.phase, cost.trials, cost.failed, cost.pruned, f"{cost.sample_passes:,}"),
        _share(cost.failed_sample_passes, cost.sample_passes),
        _share(cost.pruned_sample_passes, cost.sample_passes),
        *(f"{cost.seconds:.1f}", f"{cost.suggest_seconds:.2f}"),
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""


def _trial_cells(trial: "Trial", tested: str) -> tuple[object, ...]:
    test = (trial.result or {}).get(tested)
    return (
        *(trial.id, trial.arm, trial.phase, trial.seed, trial.state, _percent(trial.score), _percent(test)),
        *(f"{trial.sample_passes:,}", f"{trial.seconds:.1f}", trial.reason or ""),
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"
