"""Reproduction of a study's proposals: a replay can be trusted if the scheduler proposes the recorded trials again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.search.scheduler import Scheduler
from services.store import EventRow, StudyRow
from services.study_config.resolved_study import parse_resolved
from services.trial_record import Trial


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How many recorded trials of an arm the scheduler proposes again.

    Args:
        trials: Number of recorded trials, including retrainings.
        equal: Number of these that are proposed again without any difference.
        difference: The first trial that is not, and what differs; None if there is none.
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
    """Let the scheduler propose every trial again, from what was known when the trial was first proposed.

    Which trials had ended by then follows from the times in the store, so this also works for a study that ran on
    several workers. For a study that was extended, the version at the time of the proposal is used.

    Args:
        row: The study.
        events: Events of the study.
        trials: All trials of the study in the order in which they were proposed.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        images: Number of training images.
        arms: Names of the arms to reproduce; by default, all.
    """
    reproductions = {arm: Reproduction(0, 0) for arm in row.arms if arms is None or arm in arms}
    scheduler, in_force = None, None
    unended: list[Trial] = []  # earlier trials that the scheduler does not know to have ended
    for position, trial in enumerate(trials):
        unended += trials[max(0, position - 1) : position]
        if trial.arm not in reproductions:
            continue
        config = _config_at(row, events, trial)
        if scheduler is None or config is not in_force:  # the first trial, or the first one after an extension
            study = parse_resolved(config)
            scheduler, in_force = Scheduler(study, shape=shape, classes=classes, images=images), config
            unended = list(trials[:position])
        # Trials of all arms, also of those that are not reproduced: matched arms depend on the winners of others.
        known = [_as_of(earlier, trial) for earlier in unended]
        for earlier in known:
            scheduler.update(earlier)
        unended = [earlier for earlier, as_known in zip(unended, known, strict=True) if as_known is not earlier]
        difference = _difference(scheduler.next(), trial)
        counts = reproductions[trial.arm]
        text = f"{trial.phase} trial {trial.number}: {difference}" if difference else None
        reproductions[trial.arm] = Reproduction(
            counts.trials + 1, counts.equal + (difference is None), counts.difference or text
        )
    return reproductions


def faithful(reproductions: Mapping[str, Reproduction]) -> bool:
    """Return whether every recorded trial is proposed again without any difference."""
    return all(reproduction.difference is None for reproduction in reproductions.values())


def _config_at(row: StudyRow, events: Sequence[EventRow], trial: Trial) -> Mapping[str, Any]:
    """Return the resolved study as it was when a trial was proposed.

    The event of an extension contains the study before the extension, so the first such event after the trial is the
    one that counts. Without one, the study was not extended after the trial.
    """
    later = (event for event in events if event.kind == "reopened" and event.at >= trial.created_at)
    return next((event.detail["config"] for event in later if event.detail.get("config")), row.config)


def _as_of(earlier: Trial, trial: Trial) -> Trial:
    """Return an earlier trial as it was when `trial` was proposed: running, unless it had ended by then."""
    if earlier.finished_at is not None and earlier.finished_at <= trial.created_at:
        return earlier
    # Its results came later; of a running trial the scheduler knows its parameters and nothing else.
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
        (f"{name} {proposed!r}, not {before!r}" for name, (proposed, before) in pairs.items() if proposed != before),
        None,
    )
