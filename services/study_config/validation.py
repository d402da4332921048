"""Whether a study can be run on its data: networks, grids, constraints and the budget, checked before anything runs."""

from nas_blockout.data import Splits
from nas_blockout.experiment import build, known_costs
from search_spaces import SPACES, Context, compose, grid
from services.study_config.schema import Arm, Study, StudyError


def check_against_data(study: Study, splits: Splits, *, source: str) -> None:
    """Build every arm's network and price one training, so that impossible values are refused in time.

    Raises:
        StudyError: A network cannot be built for these images and classes, a grid is too large, a network that cannot
            vary exceeds a constraint, or the budget does not pay for one search trial and all retrainings.
    """
    images = len(splits.train.labels)
    seeds = len(study.config.retrain.seeds)
    for name, arm in study.arms.items():
        try:
            build(arm.experiment, splits)
            _check_search(arm, splits)
        except ValueError as error:
            raise StudyError(f"{source}: arms.{name}: {error}") from None
        one, budget = images * arm.experiment.training.epochs, study.config.budget
        if budget.trainings is not None and budget.trainings < 1 + seeds:
            raise StudyError(
                f"{source}: budget.trainings={budget.trainings} is too small: an arm needs {1 + seeds} for one search "
                f"trial and {seeds} retrainings"
            )
        if budget.sample_passes is not None and budget.sample_passes < one * (1 + seeds):
            raise StudyError(
                f"{source}: budget.sample_passes={budget.sample_passes} is too small: arm {name!r} needs "
                f"{one * (1 + seeds)} for one search trial and {seeds} retrainings of {one} passes "
                f"({images} images x {arm.experiment.training.epochs} epochs)"
            )


def _check_search(arm: Arm, splits: Splits) -> None:
    """Refuse a grid that is too large, and a network that cannot vary and exceeds what is allowed."""
    shape, classes, limits = splits.shape, len(splits.class_names), arm.rules.constraints
    if arm.searcher == "grid":
        space = compose([SPACES[name] for name in arm.spaces])
        grid(space, Context(arm.experiment, shape, classes), points=arm.rules.grid_points)
    if not arm.spaces and arm.match is None and limits.limits:
        exceeded = limits.exceeded(known_costs(arm.experiment, shape=shape, classes=classes))
        for name, (found, limit) in exceeded.items():
            raise ValueError(
                f"constraints.{name}={limit}: its network has {found} and there is no space in which it could have "
                "fewer; make it smaller or leave the constraint out"
            )
