"""Checks of a study against its data, before anything runs: networks, grids, constraints and the budget."""

from collections.abc import Iterator

from nas_blockout.data import Splits
from nas_blockout.experiment import build, known_costs
from nas_blockout.train import sample_passes
from search_spaces import SPACES, Context, compose, grid, require_fit
from services.study_config.errors import LineMap, StudyError, Violation, violation_of, with_lines
from services.study_config.resolved_study import Arm, Study


def check_against_data(study: Study, splits: Splits, *, source: str, lines: LineMap | None = None) -> None:
    """Build the network of every arm and compute the cost of one training, to reject impossible studies early.

    Args:
        study: The study.
        splits: Data of the study.
        source: Name of the file of the study.
        lines: Lines of the keys, if the study comes from a file.

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
    """Yield the limits of the budget that are too low for one search trial and all retrainings of every arm."""
    budget = study.config.budget
    if budget.trainings is not None and budget.trainings < 1 + seeds:
        rule = f"must be at least {1 + seeds}, for one search trial and {seeds} retrainings"
        yield Violation(("budget", "trainings"), rule, str(budget.trainings))
    costs = {name: sample_passes(arm.experiment.training, images) for name, arm in study.arms.items()}
    dearest = max(costs, key=lambda name: costs[name])
    one, epochs = costs[dearest], study.arms[dearest].experiment.training.epochs
    if budget.sample_passes is not None and budget.sample_passes < one * (1 + seeds):
        statistics = one // epochs - images
        charged = f" and {statistics} for evaluation" if statistics else ""
        rule = (
            f"must be at least {one * (1 + seeds)} for arm {dearest!r}, one search trial and {seeds} retrainings of "
            f"{one} passes ({epochs} epochs of {images} images{charged})"
        )
        yield Violation(("budget", "sample_passes"), rule, str(budget.sample_passes))


def _check_search(arm: Arm, splits: Splits) -> None:
    """Reject a grid that is too large, and constraints that the network of an arm without search space exceeds."""
    shape, classes, limits = splits.shape, len(splits.class_names), arm.rules.constraints
    if arm.searcher == "grid":
        space = compose([SPACES[name] for name in arm.spaces])
        grid(space, Context(arm.experiment, shape, classes), points=arm.rules.grid_points)  # raises if it is too large
    # With a space or a match, some proposal may satisfy the constraints: only the search can tell.
    if not arm.spaces and arm.match is None and limits.limits:
        exceeded = limits.exceeded(known_costs(arm.experiment, shape=shape, classes=classes))
        for name, (cost, limit) in exceeded.items():
            raise ValueError(
                f"constraints.{name}={limit}: the network has {cost} and the arm has no search space in which it could "
                "have fewer; make the network smaller or remove the constraint"
            )
