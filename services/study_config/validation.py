"""Rules between the settings of an arm, and between a study and its data: networks, spaces, grids, costs and budget."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import Dimensions, Splits
from nas_blockout.experiment import (
    Experiment,
    Parts,
    build,
    known_costs,
    notes_of,
    require_match,
    split_epochs,
    unbuildable,
)
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import (
    POLICY_SHARE,
    BlockDrop,
    BlockDropSettings,
    controlled_blocks,
    curriculum_epochs,
)
from nas_blockout.methods.dropcluster import DropClusterSettings
from nas_blockout.settings_fields import Conflict, conflicts_in
from nas_blockout.training import TrainingSettings, indivisible, sample_passes
from search_spaces import SPACES, Context, TooFew, compose, grid, require_fit
from services.study_config.errors import LineMap, StudyError, Violation, violation_at, with_lines
from services.study_config.layers import ARM_SECTIONS, ArmSettings, arms_of
from services.study_config.resolved_study import Arm, Study
from services.study_config.schema import Budget
from services.study_config.search_options import Constraints

# Where the data has not been read: with this shape and number of classes, whatever fits some data passes the checks.
_ANY_SHAPE, _MANY_CLASSES = (3, 64, 64), 1000
# A network depends on all of these, as far as an error does not name the settings that it compares.
_OF_NETWORK = tuple(section for section in ARM_SECTIONS if section != "training")


def incompatibilities(parts: Parts, *, matched: bool) -> Iterator[Conflict]:
    """Yield the settings of an arm that do not fit together, though the library would train with them.

    Args:
        parts: Parts of the experiment of the arm.
        matched: Whether the cost of the arm is matched to that of another arm.
    """
    yield from _warmup(parts)
    method, backbone = parts.method, parts.backbone
    if isinstance(method, DropClusterSettings) and method.start_epoch >= parts.training.epochs:
        message = (
            f"method.start_epoch: must be below {parts.training.epochs}, the epochs of the training; otherwise nothing "
            f"would be dropped, got {method.start_epoch}"
        )
        yield Conflict(message, "method.start_epoch", "method.name", "training.epochs")
    site = next(entry.site for entry in METHODS.values() if entry.settings is type(method))
    if isinstance(backbone, ResNetSettings) and backbone.regularized_stages == 0 and site == "maps":
        message = (
            "backbone.regularized_stages: must be at least 1, or left out for all stages; otherwise the method has no "
            "effect, got 0"
        )
        yield Conflict(message, "backbone.regularized_stages", "backbone.name", "method.name")
    if matched:
        if parts.confusion is not None:
            yield Conflict("match: the cost of branches from confusions cannot be chosen", "match", "confusion")
        try:
            if isinstance(method, BlockDropSettings):
                require_match(method)
        except ValueError as error:
            yield Conflict(str(error), "match", "backbone.name", "method")


def _warmup(parts: Parts) -> Iterator[Conflict]:
    training = parts.training
    name, derivation = next(
        ((name, found) for name in ("distillation", "pruning", "confusion") if (found := getattr(parts, name))),
        (None, None),
    )
    rule = "training.warmup_epochs: must be at most {}, the epochs {}, got {:g}; warm up for fewer epochs"
    compared = ("training.warmup_epochs", "training.epochs")
    if training.warmup_epochs > training.epochs:
        yield Conflict(rule.format(training.epochs, "of the training", training.warmup_epochs), *compared)
    elif name is not None and derivation is not None and training.epochs > 1:
        # Every stage has a learning rate schedule, with its own warm-up.
        fewest = min(stage.epochs for stage in split_epochs(training, derivation))
        if training.warmup_epochs > fewest:
            message = rule.format(fewest, "of the shorter of its two stages", training.warmup_epochs)
            yield Conflict(message, *compared, name)


def misfits(experiment: Experiment, spaces: Sequence[str], data: Dimensions) -> Iterator[Conflict]:
    """Yield why search spaces cannot be applied to an arm.

    Args:
        experiment: Experiment of the arm before the search.
        spaces: Names of the search spaces, all of which exist.
        data: What is known of the data.
    """
    shape, classes, certain = _assumed(data)
    if not certain and isinstance(experiment.backbone, ModuleSettings):  # which may take no other images than its own
        return
    try:
        require_fit([SPACES[space] for space in spaces], Context(experiment, shape, classes))
    except TooFew as error:
        if certain:
            yield Conflict(str(error), "space", "backbone", "data")
    except ValueError as error:
        for each in conflicts_in(error):
            keys = [key for key in each.keys or _OF_NETWORK if key != "architecture"]  # which a space has chosen
            yield Conflict(str(each), "space", *keys)


def untrainable(
    experiment: Experiment,
    spaces: Sequence[str],
    *,
    grid_points: int | None,
    constraints: Constraints,
    matched: bool,
    data: Dimensions,
) -> Iterator[Conflict]:
    """Yield why an arm cannot be searched with its data: its network, its grid, or the cost of its network.

    Args:
        experiment: Experiment of the arm before the search, whose spaces fit.
        spaces: Names of the search spaces.
        grid_points: Values per numeric parameter, if the arm searches a grid.
        constraints: Limits on the network of a trial.
        matched: Whether the cost of the arm is matched to that of another arm.
        data: What is known of the data.
    """
    shape, classes, certain = _assumed(data)
    if not certain and isinstance(experiment.backbone, ModuleSettings):  # which may take no other images than its own
        return
    faults = list(unbuildable(experiment, shape=shape, classes=classes))
    yield from (Conflict(str(each), *each.keys or _OF_NETWORK) for each in faults)
    if not certain or faults:
        return
    if grid_points is not None:
        space = compose([SPACES[name] for name in spaces])
        try:
            grid(space, Context(experiment, shape, classes), points=grid_points)
        except ValueError as error:
            yield Conflict(str(error), "searcher", "grid_points", "space", *_OF_NETWORK)
    # With a space or a match, some proposal may satisfy the constraints: only the search can tell.
    if not spaces and not matched and constraints.limits:
        with torch.device("meta"):  # costs are counted, and no weights allocated
            costs = known_costs(experiment, shape=shape, classes=classes)
        exceeded = constraints.exceeded(costs)
        for name, (cost, limit) in exceeded.items():
            message = (
                f"constraints.{name}: the network has {cost} and the arm has no search space in which it could have "
                f"fewer, got {limit}; make the network smaller or remove the constraint"
            )
            yield Conflict(message, f"constraints.{name}", "space", "match", *_OF_NETWORK)


def _assumed(data: Dimensions) -> tuple[tuple[int, int, int], int, bool]:
    """Return shape, number of classes, and whether they are those of the data."""
    return data.shape or _ANY_SHAPE, data.classes or _MANY_CLASSES, None not in (data.shape, data.classes)


def unpaid(
    budget: Budget, *, seeds: int, trainings: Mapping[str, TrainingSettings], images: int | None
) -> Iterator[Violation]:
    """Yield the limits of a budget that are too low for one search trial and all retrainings of every arm.

    Args:
        budget: The budget.
        seeds: Number of retrainings of an arm.
        trainings: Settings of the training, by arm.
        images: Number of training images; None if it is not known.
    """
    if budget.trainings is not None and budget.trainings < 1 + seeds:
        rule = f"must be at least {1 + seeds}, for one search trial and {seeds} retrainings"
        yield Violation(("budget", "trainings"), rule, str(budget.trainings))
    if budget.sample_passes is None or images is None or not trainings:
        return
    costs = {name: sample_passes(training, images) for name, training in trainings.items()}
    dearest = max(costs, key=lambda name: costs[name])
    one, epochs = costs[dearest], trainings[dearest].epochs
    if budget.sample_passes < one * (1 + seeds):
        evaluation = one - epochs * images
        charged = f", and {evaluation} to evaluate them" if evaluation else ""
        rule = (
            f"must be at least {one * (1 + seeds)} for arm {dearest!r}, one search trial and {seeds} retrainings of "
            f"{one} passes ({epochs} epochs of {images} images{charged})"
        )
        yield Violation(("budget", "sample_passes"), rule, str(budget.sample_passes))


def dimensions_of(splits: Splits) -> Dimensions:
    """Return the dimensions of data that has been read."""
    return Dimensions(splits.shape, len(splits.class_names), len(splits.train.labels))


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
    check_against_dimensions(study, dimensions_of(splits), source=source, lines=lines)
    document = study.config.model_dump(exclude_unset=True)
    arms = arms_of(document)
    for name, arm in study.arms.items():
        try:
            build(arm.experiment, splits)
        except ValueError as error:
            settings = ArmSettings(document, arms, name)
            violations = [
                violation_at(settings.place(each.keys), str(each), key=each.keys[0])
                if each.keys
                else violation_at(("arms", name), str(each), key="network")
                for each in conflicts_in(error)
            ]
            raise StudyError.of(with_lines(violations, lines), source=source) from None


def check_against_dimensions(study: Study, data: Dimensions, *, source: str, lines: LineMap | None = None) -> None:
    """Check a study against what is known of its data, as `check_against_data` does.

    Raises:
        StudyError: As in `check_against_data`.
    """
    document = study.config.model_dump(exclude_unset=True)
    arms = arms_of(document)
    violations: list[Violation] = []
    for name, arm in study.arms.items():
        settings = ArmSettings(document, arms, name)
        violations += (
            violation_at(settings.place(conflict.keys), str(conflict), key=conflict.keys[0])
            for conflict in (*_unfit(arm, data), *_undivided(study, arm))
        )
    seeds = len(study.config.retrain.seeds)
    trainings = {name: arm.experiment.training for name, arm in study.arms.items()}
    violations += unpaid(study.config.budget, seeds=seeds, trainings=trainings, images=data.train_images)
    if violations:
        raise StudyError.of(with_lines(violations, lines), source=source)


def _undivided(study: Study, arm: Arm) -> Iterator[Conflict]:
    """Yield what keeps several ranks from training the trials of an arm together."""
    if study.config.workers.ranks_of_trial > 1 and (conflict := indivisible(arm.experiment.training)):
        yield conflict


def _unfit(arm: Arm, data: Dimensions) -> Iterator[Conflict]:
    faults = list(misfits(arm.experiment, arm.spaces, data))
    yield from faults
    yield from untrainable(
        arm.experiment,
        arm.spaces,
        grid_points=arm.rules.grid_points if arm.searcher == "grid" and not faults else None,
        constraints=arm.rules.constraints,
        matched=arm.match is not None,
        data=data,
    )


def cautions(study: Study, splits: Splits) -> Iterator[str]:
    """Yield what is allowed but should be known before a study runs.

    This is how a network was changed to fit the data, what a policy costs, which blocks it never controls, and for how
    long it keeps its network from learning while those it is compared with learn.

    Args:
        study: The resolved study, which `check_against_data` accepts.
        splits: Data of the study.
    """
    for name, arm in study.arms.items():
        method = arm.experiment.method
        notes = notes_of(arm.experiment, shape=splits.shape, classes=len(splits.class_names))
        yield from (f"arm {name!r}: {note}" for note in notes)
        if not isinstance(method, BlockDropSettings):
            continue
        model = build(arm.experiment, splits)
        assert isinstance(model, BlockDrop), "the method decides what is built"
        if share := model.policy_share:
            text = (
                f"arm {name!r}: the policy network costs {share:.1%} of the MACs of the network whose blocks it skips"
            )
            large = share > POLICY_SHARE
            yield f"warning: {text}; leave out policy_widths and policy_pool for a smaller one" if large else text
        blocks, pace = len(model.controlled), method.blocks_per_epoch
        length = curriculum_epochs(arm.experiment.training.epochs, method)
        last = controlled_blocks(length - 1, blocks, epochs=length, per_epoch=pace) if length else blocks
        if last < blocks:
            yield (
                f"warning: arm {name!r}: with blocks_per_epoch={pace} the policy controls {last} of {blocks} blocks "
                "when its phase ends; leave it out to control all of them"
            )
        fixed = [other for other, each in study.arms.items() if _has_fixed_path(each)]
        if length and fixed:
            epochs = arm.experiment.training.epochs
            yield (
                f"warning: arm {name!r}: its network is frozen for {length} of {epochs} epochs, while that of "
                f"{', '.join(fixed)} learns in all of them; set policy_fraction to 0 for equal terms"
            )


def _has_fixed_path(arm: Arm) -> bool:
    method = arm.experiment.method
    return isinstance(method, BlockDropSettings) and not method.learns
