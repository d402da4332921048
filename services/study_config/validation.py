"""Whether a study can be run on its data: networks, grids, constraints and the budget, checked before anything runs."""

from collections.abc import Iterator

from nas_blockout.data import Splits
from nas_blockout.experiment import build, known_costs
from search_spaces import SPACES, Context, compose, grid, require_fit
from services.study_config.errors import LineMap, StudyError, Violation, violation_of, with_lines
from services.study_config.resolved_study import Arm, Study


def check_against_data(study: Study, splits: Splits, *, source: str, lines: LineMap | None = None) -> None:
    """Build every arm's network and price one training, so that impossible values are refused in time.

    Args:
        study: The study.
        splits: Its data.
        source: Name of its file.
        lines: Where the keys stand, if the study is read from a file as it is.

    Raises:
        StudyError: A network cannot be built for these images and classes, a grid is too large, a network that cannot
            vary exceeds a constraint, or the budget does not pay for one search trial and all retrainings.
    """
    images, seeds = len(splits.train.labels), len(study.config.retrain.seeds)
    context = splits.shape, len(splits.class_names)
    violations: list[Violation] = []
    for name, arm in study.arms.items():
        try:
            build(arm.experiment, splits)
            require_fit([SPACES[space] for space in arm.spaces], Context(arm.experiment, *context))
            _check_search(arm, splits)
        except ValueError as error:
            violations.append(violation_of(error, ("arms", name)))
    violations += _unpaid(study, images=images, seeds=seeds)
    if violations:
        raise StudyError.of(with_lines(violations, lines), source=source)


def _unpaid(study: Study, *, images: int, seeds: int) -> Iterator[Violation]:
    """Yield the limits of the budget that do not pay for one search trial and all retrainings of every arm."""
    budget = study.config.budget
    if budget.trainings is not None and budget.trainings < 1 + seeds:
        rule = f"must be at least {1 + seeds}, for one search trial and {seeds} retrainings"
        yield Violation(("budget", "trainings"), rule, str(budget.trainings))
    epochs = {name: arm.experiment.training.epochs for name, arm in study.arms.items()}
    dearest = max(epochs, key=lambda name: epochs[name])
    one = images * epochs[dearest]
    if budget.sample_passes is not None and budget.sample_passes < one * (1 + seeds):
        rule = (
            f"must be at least {one * (1 + seeds)} for arm {dearest!r}, one search trial and {seeds} retrainings of "
            f"{one} passes ({images} images x {epochs[dearest]} epochs)"
        )
        yield Violation(("budget", "sample_passes"), rule, str(budget.sample_passes))


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
