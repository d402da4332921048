"""What a study costs at most, from its budget alone: no data is read, nothing is built, and nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from nas_blockout.training import sample_passes
from services.budget.limits import trials_left
from services.budget.tally import Tally
from services.study_config.resolved_study import Arm, Study


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """What an arm costs at most.

    Args:
        name: Name of the arm.
        searches: Search trials that the budget pays for; None where only measured seconds can tell.
        retrainings: Retrainings, one a seed.
        passes_each: Sample passes of one training; None where only the data can tell.
        sample_passes: Of all trainings; None where neither budget nor data tell.
        stops_early: Whether search trials may be stopped early, which leaves their passes to further ones.
    """

    name: str
    searches: int | None
    retrainings: int
    passes_each: int | None
    sample_passes: int | None
    stops_early: bool

    @property
    def trainings(self) -> int | None:
        """Search trials and retrainings."""
        return None if self.searches is None else self.searches + self.retrainings


@dataclass(frozen=True, slots=True)
class PlannedCost:
    """What a study costs at most.

    Args:
        arms: Its arms.
        seconds: Limit of the seconds of training of all arms together, or None.
        trials_at_once: Trials that it runs at the same time, where there is room.
        cpus: CPUs of a trial.
        gpus: GPUs of a trial.
    """

    arms: tuple[PlannedArm, ...]
    seconds: float | None
    trials_at_once: int
    cpus: int
    gpus: float

    @property
    def trainings(self) -> int | None:
        """Search trials and retrainings of all arms, or None if they are not known of one."""
        return _total([arm.trainings for arm in self.arms])

    @property
    def sample_passes(self) -> int | None:
        """Sample passes of all arms, or None if they are not known of one."""
        return _total([arm.sample_passes for arm in self.arms])

    def training_seconds(self, pace: Mapping[str, float]) -> float | None:
        """Return the seconds of training of all arms at a measured pace, at most those of the budget.

        Args:
            pace: Seconds per sample pass, by arm.

        Returns:
            None if the pace or the passes of an arm are not known, and no limit is set.
        """
        if any(arm.sample_passes is None or arm.name not in pace for arm in self.arms):
            return self.seconds
        spent = sum((arm.sample_passes or 0) * pace[arm.name] for arm in self.arms)
        return spent if self.seconds is None else min(spent, self.seconds)


def planned_cost(study: Study, images: int | None) -> PlannedCost:
    """Return what a study costs at most: arms that exhaust a grid, or fail, cost less.

    Args:
        study: The resolved study.
        images: Number of training images; None if it is not known.
    """
    workers, seconds = study.config.workers, study.config.budget.seconds
    return PlannedCost(
        arms=tuple(_arm(study, arm, images) for arm in study.arms.values()),
        seconds=None if seconds is None else seconds * len(study.arms),
        trials_at_once=workers.max_concurrent_trials,
        cpus=workers.cpus * workers.ranks_of_trial,
        gpus=workers.gpus,
    )


def _arm(study: Study, arm: Arm, images: int | None) -> PlannedArm:
    budget, retrainings = study.config.budget, len(study.config.retrain.seeds)
    each = None if images is None else sample_passes(arm.experiment.training, images)
    left = trials_left(budget, Tally(), cost=each or 1, retrainings=retrainings)
    if each is None:
        left.pop("sample_passes", None)
    left.pop("seconds", None)  # of which nothing is measured yet
    searches = min(left.values(), default=None)
    passes = budget.sample_passes
    if each is not None and searches is not None:
        passes = (searches + retrainings) * each
    return PlannedArm(arm.name, searches, retrainings, each, passes, arm.rules.pruner is not None)


def _total(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
