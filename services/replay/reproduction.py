"""Whether the scheduler, asked again, proposes what it proposed in the study: the proof that a replay is faithful."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.search.scheduler import Scheduler
from services.store import EventRow, StudyRow
from services.study_config.resolved_study import parse_resolved
from services.trial_record import Trial


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How many recorded trials of an arm are proposed again.

    Args:
        trials: Recorded trials, retrainings included.
        equal: How many of these are proposed again, equal in everything.
        difference: The first that is not, and what differs; None if all are.
    """

    trials: int
    equal: int
    difference: str | None = None


def reproduce(
    row: StudyRow,
    events: Sequence[EventRow],
    trials: Sequence[Trial],
    *,
    shape: tuple[int, int, int],
    classes: int,
    images: int,
    arms: Collection[str] | None = None,
) -> dict[str, Reproduction]:
    """Ask the scheduler for every trial again, given what was known when the trial was proposed.

    Which trials had ended by then follows from the times in the store, so a study that several workers ran is
    reproduced as well. A study that was extended is asked as it was at the time.

    Args:
        row: The study.
        events: Its events.
        trials: All its trials in the order in which they were proposed.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Training images.
        arms: Whose trials to ask for again; those of all arms if left out.
    """
    reproductions = {arm: Reproduction(0, 0) for arm in row.arms if arms is None or arm in arms}
    scheduler, in_force = None, None
    for position, trial in enumerate(trials):
        if trial.arm not in reproductions:
            continue
        config = _config_at(row, events, trial)
        if scheduler is None or config is not in_force:
            study = parse_resolved(config)
            scheduler, in_force = Scheduler(study, shape=shape, classes=classes, images=images), config
        for earlier in trials[:position]:
            scheduler.update(_as_of(earlier, trial))
        difference = _difference(scheduler.next(), trial)
        counts = reproductions[trial.arm]
        text = f"{trial.phase} trial {trial.number}: {difference}" if difference else None
        reproductions[trial.arm] = Reproduction(
            counts.trials + 1, counts.equal + (difference is None), counts.difference or text
        )
    return reproductions


def faithful(reproductions: Mapping[str, Reproduction]) -> bool:
    """Return whether every recorded trial is proposed again."""
    return all(reproduction.difference is None for reproduction in reproductions.values())


def _config_at(row: StudyRow, events: Sequence[EventRow], trial: Trial) -> Mapping[str, Any]:
    """Return the resolved study as it was when a trial was proposed.

    An event that extends a study holds the study before the extension: the first one after the trial has it.
    """
    later = (event for event in events if event.kind == "reopened" and event.at >= trial.created_at)
    return next((event.detail["config"] for event in later if event.detail.get("config")), row.config)


def _as_of(earlier: Trial, trial: Trial) -> Trial:
    """Return an earlier trial as it was when a later one was proposed."""
    if earlier.finished_at is not None and earlier.finished_at <= trial.created_at:
        return earlier
    return replace(earlier, state="running", sample_passes=0, seconds=0.0, score=None, result=None)


def _difference(proposal: Trial | None, recorded: Trial) -> str | None:
    if proposal is None:
        return "nothing is proposed"
    pairs = {
        "arm": (proposal.arm, recorded.arm),
        "phase": (proposal.phase, recorded.phase),
        "number": (proposal.number, recorded.number),
        "seed": (proposal.seed, recorded.seed),
        "parameters": (dict(proposal.values), dict(recorded.values)),
        "architecture": (proposal.architecture_hash, recorded.architecture_hash),
        "replicate": (proposal.replicate_of, recorded.replicate_of),
        "experiment": (proposal.config, recorded.config),
    }
    return next(
        (f"{name} {again!r}, not {before!r}" for name, (again, before) in pairs.items() if again != before), None
    )
