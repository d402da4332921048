"""Does the plan, asked again, propose what it really proposed? The proof that a replay is faithful."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.execution.driver import entry_of
from services.search import Entry, Plan, Proposal
from services.store import EventRow, StudyRow, TrialRow
from services.study_config.schema import parse_resolved


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How much of what an arm really did is proposed again.

    Args:
        trials: What it really ran, retrainings among them.
        equal: How many of these are proposed again, equal in everything.
        difference: The first that is not, and what differs; None if all are.
    """

    trials: int
    equal: int
    difference: str | None = None


def reproduce(
    row: StudyRow,
    events: Sequence[EventRow],
    trials: Sequence[TrialRow],
    *,
    shape: tuple[int, int, int],
    classes: int,
    images: int,
    arms: Collection[str] | None = None,
) -> dict[str, Reproduction]:
    """Ask the plan of a study for every trial again, knowing what was known when it was proposed.

    What had ended by then is read from the moments in the store, so that a study run by several workers is reproduced
    as well. A study that was extended is asked as it was at the time.

    Args:
        row: The study.
        events: What happened to it.
        trials: All its trials in the order in which they were proposed.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
        arms: Whose trials to ask for again; those of all if left out.
    """
    found = {arm: Reproduction(0, 0) for arm in row.arms if arms is None or arm in arms}
    entries = [entry_of(trial) for trial in trials]
    plan, in_force = None, None
    for position, trial in enumerate(trials):
        if trial.arm not in found:
            continue
        config = _config_at(row, events, trial)
        if plan is None or config is not in_force:
            study = parse_resolved(config)
            plan, in_force = Plan(study, shape=shape, classes=classes, images=images), config
        for earlier, entry in zip(trials[:position], entries, strict=False):
            plan.update(_as_of(earlier, entry, trial))
        difference = _difference(plan.next(), entries[position], trial.replicate_of)
        found[trial.arm] = _counted(found[trial.arm], trial, difference)
    return found


def faithful(found: Mapping[str, Reproduction]) -> bool:
    """Return whether everything that really happened is proposed again."""
    return all(each.difference is None for each in found.values())


def _config_at(row: StudyRow, events: Sequence[EventRow], trial: TrialRow) -> Mapping[str, Any]:
    """Return the resolved study as it was when a trial was proposed."""
    later = (event for event in events if event.kind == "reopened" and event.at >= trial.created_at)
    return next((event.detail["config"] for event in later if event.detail.get("config")), row.config)


def _as_of(earlier: TrialRow, entry: Entry, trial: TrialRow) -> Entry:
    """Return an earlier trial as it stood when a later one was proposed."""
    if earlier.finished_at is not None and earlier.finished_at <= trial.created_at:
        return entry
    return replace(entry, state="running", spent=0, seconds=0.0, score=None, macs=None)


def _difference(proposal: Proposal | None, real: Entry, replicate_of: int | None) -> str | None:
    if proposal is None:
        return "nothing is proposed"
    again = proposal.entry
    pairs = {
        "arm": (again.arm, real.arm),
        "phase": (again.phase, real.phase),
        "number": (again.number, real.number),
        "seed": (again.seed, real.seed),
        "parameters": (_values(again), _values(real)),
        "architecture": (again.architecture_hash, real.architecture_hash),
        "replicate": (proposal.replicate_of, replicate_of),
        "experiment": (again.experiment, real.experiment),
    }
    return next((f"{name} {mine!r}, not {its!r}" for name, (mine, its) in pairs.items() if mine != its), None)


def _values(entry: Entry) -> Mapping[str, Any]:
    return dict(entry.parameters.get("values", {})) if entry.parameters else {}


def _counted(found: Reproduction, trial: TrialRow, difference: str | None) -> Reproduction:
    text = f"{trial.phase} trial {trial.number}: {difference}" if difference else None
    return Reproduction(found.trials + 1, found.equal + (difference is None), found.difference or text)
