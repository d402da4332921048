"""Rules between the settings of an arm, and between a study and its data: networks, spaces, grids, costs and budget."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nas_blockout.backbones import backbone_of
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import Dimensions, Splits, require_held_batch
from nas_blockout.experiment import (
    MOST_PARAMETERS,
    Experiment,
    Parts,
    known_costs,
    needs_graph,
    notes_of,
    outlined_for_training,
    require_match,
    split_epochs,
    unbuildable,
)
from nas_blockout.methods import method_of
from nas_blockout.methods.blockdrop import (
    POLICY_SHARE,
    BlockDrop,
    BlockDropSettings,
    controlled_blocks,
    curriculum_epochs,
)
from nas_blockout.methods.dropcluster import DropClusterSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.serialization import count_of, near
from nas_blockout.settings_fields import Conflict, conflicts_in
from nas_blockout.training import TrainingSettings, indivisible, sample_passes
from search_spaces import Context, Recorded, TooFew, compose, grid, require_fit, space_named
from services.study_config.errors import LineMap, StudyError, Violation, violation_at, with_lines
from services.study_config.layers import ARM_SECTIONS, ArmSettings, arms_of
from services.study_config.resolved_study import Arm, Study, folds_left_out, repeated_folds
from services.study_config.schema import Budget
from services.study_config.search_options import Constraints, Point
from services.study_config.searching.pruners import fewest_epochs
from services.study_config.searching.search_code import unsearchable
from services.study_config.searching.warm_starts import Beginning


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest study that is accepted, so that no study keeps what all users share busy; None is no limit.

    Args:
        arms: Arms.
        epochs: Epochs of a training.
        parameters: Parameters of a network, without those that a method adds.
        trials: Trials of all arms that the budget may pay for, as far as that is known.
        sample_passes: Sample passes of the budget of an arm.
        hours: Hours of the budget of an arm.
        traced: Whether networks are traced to find their graphs, and derivations tried however deep they are, which
            takes seconds of a deep one. Without it, such arms are checked only as far as their dense networks go.
    """

    arms: int | None = None
    epochs: int | None = None
    parameters: int = MOST_PARAMETERS
    trials: int | None = None
    sample_passes: int | None = None
    hours: int | None = None
    traced: bool = True


NO_BOUNDS = Bounds()
_DERIVED_AT_ONCE = 20  # layers
# Where the data has not been read: with this shape and number of classes, whatever fits some data passes the checks.
_ANY_SHAPE, _MANY_CLASSES = (3, 64, 64), 1000
# A network depends on all of these, as far as an error does not name the settings that it compares.
_OF_GRAPHS = frozenset({"blockout", "branched", "confusion", "darts"})  # spaces that read the graph of a network
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
    site = method_of(method).site
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


def misfits(
    experiment: Experiment, spaces: Sequence[str], data: Dimensions, bounds: Bounds = NO_BOUNDS
) -> Iterator[Conflict]:
    """Yield why search spaces cannot be applied to an arm.

    Args:
        experiment: Experiment of the arm before the search.
        spaces: Names of the search spaces, all of which exist.
        data: What is known of the data.
        bounds: Whether its network may be traced.
    """
    if not bounds.traced and _is_traced(experiment, spaces):
        return
    shape, classes, certain = _assumed(data)
    if not certain and backbone_of(experiment.backbone).from_factory:  # which may take no other images than its own
        return
    try:
        require_fit([space_named(space) for space in spaces], Context(experiment, shape, classes))
    except TooFew as error:
        if certain:
            yield Conflict(str(error), "space", "backbone", "data")
    except ValueError as error:
        for each in conflicts_in(error):
            keys = [key for key in each.keys or _OF_NETWORK if key != "architecture"]  # which a space has chosen
            yield Conflict(str(each), "space", *keys)


def unfit_points(
    experiment: Experiment, spaces: Sequence[str], points: Sequence[Point], data: Dimensions, bounds: Bounds = NO_BOUNDS
) -> Iterator[Conflict]:
    """Yield why points cannot be tried: a parameter is missing, is none of the spaces, or is out of its range.

    Args:
        experiment: Experiment of the arm before the search, whose spaces fit.
        spaces: Names of the search spaces.
        points: The points.
        data: What is known of the data; without it, ranges are not known either.
        bounds: Whether its network may be traced.
    """
    shape, classes, certain = _assumed(data)
    if not points or not certain or (not bounds.traced and _is_traced(experiment, spaces)):
        return
    space, context = compose([space_named(name) for name in spaces]), Context(experiment, shape, classes)
    for place, point in enumerate(points):
        recorded = Recorded(point)
        try:
            space(recorded, context)
        except ValueError as error:
            text = str(error).replace("was not recorded", "is missing").replace("the recorded ", "")
            yield Conflict(f"enqueue: point {place + 1}: {text}", "enqueue", "space", *_OF_NETWORK)
            continue
        if unknown := sorted(point.keys() - recorded.asked):
            message = f"enqueue: point {place + 1}: the spaces ask for no parameter {unknown[0]!r} with these values"
            yield Conflict(f"{message}; {near(unknown[0], sorted(recorded.asked))}", "enqueue", "space", *_OF_NETWORK)


def unfit_search(
    searcher: str,
    beginning: Beginning | None,
    experiment: Experiment,
    spaces: Sequence[str],
    data: Dimensions,
    bounds: Bounds = NO_BOUNDS,
) -> Iterator[Conflict]:
    """Yield that an arm cannot be searched as it should be, as far as its spaces can be run.

    Args:
        searcher: Name of the search algorithm.
        beginning: Trials of an earlier study with which it begins, or None.
        experiment: Experiment of the arm before the search, whose spaces fit.
        spaces: Names of the search spaces.
        data: What is known of the data.
        bounds: Whether its network may be traced.
    """
    shape, classes, certain = _assumed(data)
    if certain and (bounds.traced or not _is_traced(experiment, spaces)):
        space, context = compose([space_named(name) for name in spaces]), Context(experiment, shape, classes)
        yield from unsearchable(searcher, space, context)
        yield from beginning.conflicts(space, context) if beginning is not None else ()


def untrainable(
    experiment: Experiment,
    spaces: Sequence[str],
    *,
    grid_points: int | None,
    constraints: Constraints,
    matched: bool,
    data: Dimensions,
    bounds: Bounds = NO_BOUNDS,
) -> Iterator[Conflict]:
    """Yield why an arm cannot be searched with its data: its network, its grid, or the cost of its network.

    Args:
        experiment: Experiment of the arm before the search, whose spaces fit.
        spaces: Names of the search spaces.
        grid_points: Values per numeric parameter, if the arm searches a grid.
        constraints: Limits on the network of a trial.
        matched: Whether the cost of the arm is matched to that of another arm.
        data: What is known of the data.
        bounds: The largest network that is accepted.
    """
    shape, classes, certain = _assumed(data)
    if not certain and backbone_of(experiment.backbone).from_factory:  # which may take no other images than its own
        return
    untraced = not bounds.traced and _is_traced(experiment, spaces)
    built = Experiment(data=experiment.data, backbone=experiment.backbone) if untraced else experiment
    derived = None if bounds.traced else _DERIVED_AT_ONCE
    faults = list(
        unbuildable(built, shape=shape, classes=classes, most_parameters=bounds.parameters, most_derived=derived)
    )
    yield from (Conflict(str(each), *each.keys or _OF_NETWORK) for each in faults)
    yield from _without_architecture_steps(experiment, data.train_images)
    if not certain or faults or untraced:
        return
    if grid_points is not None:
        space = compose([space_named(name) for name in spaces])
        try:
            grid(space, Context(experiment, shape, classes), points=grid_points)
        except ValueError as error:
            yield Conflict(str(error), "searcher", "grid_points", "space", *_OF_NETWORK)
    # With a space or a match, some proposal may satisfy the constraints: only the search can tell.
    if not spaces and not matched and constraints.limits:
        costs = known_costs(experiment, shape=shape, classes=classes)
        exceeded = constraints.exceeded(costs)
        for name, (cost, limit) in exceeded.items():
            message = (
                f"constraints.{name}: the network has {cost} and the arm has no search space in which it could have "
                f"fewer, got {limit}; make the network smaller or remove the constraint"
            )
            yield Conflict(message, f"constraints.{name}", "space", "match", *_OF_NETWORK)


def _without_architecture_steps(experiment: Experiment, images: int | None) -> Iterator[Conflict]:
    """Yield that an epoch of a supernet has no step of its architecture parameters."""
    method, training = experiment.method, experiment.training
    if images is None or not isinstance(method, DartsSettings):
        return
    try:
        require_held_batch(
            images, training.batch_size, every=method.weight_steps + 1, accumulation=training.accumulation
        )
    except Conflict as conflict:
        yield conflict


def _is_traced(experiment: Experiment, spaces: Sequence[str]) -> bool:
    """Whether the graph of an arm's network must be known, and can only be found by tracing the network."""
    has_stages = backbone_of(experiment.backbone).stages is not None
    return not has_stages and (needs_graph(experiment) or not _OF_GRAPHS.isdisjoint(spaces))


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
        rule = f"must be at least {1 + seeds}, for one search trial and {count_of(seeds, 'retraining')}"
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
            f"must be at least {one * (1 + seeds)} for arm {dearest!r}, one search trial and "
            f"{count_of(seeds, 'retraining')} of {one} passes "
            f"({count_of(epochs, 'epoch')} of {count_of(images, 'image')}{charged})"
        )
        yield Violation(("budget", "sample_passes"), rule, str(budget.sample_passes))


def overlong(training: TrainingSettings, bounds: Bounds) -> Iterator[Conflict]:
    """Yield that a training has more epochs than are accepted."""
    if bounds.epochs is not None and training.epochs > bounds.epochs:
        message = f"training.epochs: must be at most {bounds.epochs}, got {training.epochs}; train for fewer epochs"
        yield Conflict(message, "training.epochs")


def overpaid(
    budget: Budget, bounds: Bounds, *, arms: int, fewest_epochs: Iterable[int], images: int | None
) -> Iterator[Violation]:
    """Yield the limits of a budget that pay for more than is accepted.

    Args:
        budget: The budget.
        bounds: The largest study that is accepted.
        arms: Number of arms.
        fewest_epochs: Of the trials of each arm: those at which the first of them may be stopped.
        images: Number of training images; None if it is not known.
    """
    for unit, value, most in (
        ("sample_passes", budget.sample_passes, bounds.sample_passes),
        ("seconds", budget.seconds, None if bounds.hours is None else bounds.hours * 3600),
    ):
        if value is not None and most is not None and value > most:
            yield Violation(("budget", unit), f"must be at most {most}", str(value), "spend less")
    if bounds.trials is None:
        return
    if budget.trainings is not None and budget.trainings * arms > bounds.trials:
        of_all = count_of(bounds.trials, "trial")
        rule = f"must be at most {bounds.trials // arms} with {count_of(arms, 'arm')}, for {of_all} in all"
        yield Violation(("budget", "trainings"), rule, str(budget.trainings), "run fewer")
    elif budget.trainings is None and budget.sample_passes is not None and images:
        trials = sum(budget.sample_passes // (images * epochs) for epochs in fewest_epochs)
        if trials > bounds.trials:
            rule = (
                f"must pay for at most {count_of(bounds.trials, 'trial')} of all arms; this one pays for up to {trials}"
            )
            yield Violation(("budget", "sample_passes"), rule, str(budget.sample_passes), "set trainings as well")


def dimensions_of(splits: Splits) -> Dimensions:
    """Return the dimensions of data that has been read."""
    return Dimensions(splits.shape, len(splits.class_names), len(splits.train.labels))


def check_against_data(study: Study, splits: Splits, *, source: str, lines: LineMap | None = None) -> None:
    """Outline the network of every arm and compute the cost of one training, to reject impossible studies early.

    No weights are allocated, except those of networks whose factory reads values, or that are pretrained.

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
            outlined_for_training(arm.experiment, shape=splits.shape, classes=len(splits.class_names))
        except ValueError as error:
            settings = ArmSettings(document, arms, name)
            violations = [
                violation_at(settings.place(each.keys), str(each), key=each.keys[0])
                if each.keys
                else violation_at(("arms", name), str(each), key="network")
                for each in conflicts_in(error)
            ]
            raise StudyError.of(with_lines(violations, lines), source=source) from None


def check_against_dimensions(
    study: Study, data: Dimensions, *, source: str, lines: LineMap | None = None, bounds: Bounds = NO_BOUNDS
) -> None:
    """Check a study against what is known of its data, as `check_against_data` does.

    Args:
        study: The study.
        data: What is known of its data.
        source: Name of the file of the study.
        lines: Lines of the keys, if the study comes from a file.
        bounds: The largest study that is accepted.

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
            for conflict in (*_unfit(arm, data, bounds), *_undivided(study, arm))
        )
    seeds = len(study.config.retrain.seeds)
    violations += repeated_folds(study.data, seeds)
    trainings = {name: arm.experiment.training for name, arm in study.arms.items()}
    violations += unpaid(study.config.budget, seeds=seeds, trainings=trainings, images=data.train_images)
    fewest = [fewest_epochs(arm.experiment.training.epochs, arm.rules.pruner) for arm in study.arms.values()]
    violations += overpaid(
        study.config.budget, bounds, arms=len(study.arms), fewest_epochs=fewest, images=data.train_images
    )
    if violations:
        raise StudyError.of(with_lines(violations, lines), source=source)


def _undivided(study: Study, arm: Arm) -> Iterator[Conflict]:
    """Yield what keeps several ranks from training the trials of an arm together."""
    if study.config.workers.ranks_of_trial > 1 and (conflict := indivisible(arm.experiment.training)):
        yield conflict


def _unfit(arm: Arm, data: Dimensions, bounds: Bounds) -> Iterator[Conflict]:
    faults = list(misfits(arm.experiment, arm.spaces, data, bounds))
    yield from faults
    if not faults:
        yield from unfit_points(arm.experiment, arm.spaces, arm.rules.enqueue, data, bounds)
        yield from unfit_search(arm.searcher, arm.rules.beginning, arm.experiment, arm.spaces, data, bounds)
    yield from untrainable(
        arm.experiment,
        arm.spaces,
        grid_points=arm.rules.grid_points if arm.searcher == "grid" and not faults else None,
        constraints=arm.rules.constraints,
        matched=arm.match is not None,
        data=data,
        bounds=bounds,
    )


def cautions(study: Study, splits: Splits) -> Iterator[str]:
    """Yield what is allowed but should be known before a study runs.

    This is how a network was changed to fit the data, what a policy costs, which blocks it never controls, and for how
    long it keeps its network from learning while those it is compared with learn.

    Args:
        study: The resolved study, which `check_against_data` accepts.
        splits: Data of the study.
    """
    shape, classes = splits.shape, len(splits.class_names)
    yield from folds_left_out(study)
    for name, arm in study.arms.items():
        method = arm.experiment.method
        notes = [*notes_of(arm.experiment, shape=shape, classes=classes), *arm.skipped(shape, classes)]
        yield from (f"arm {name!r}: {note}" for note in notes)
        if not isinstance(method, BlockDropSettings):
            continue
        model = outlined_for_training(arm.experiment, shape=shape, classes=classes)
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
                f"warning: arm {name!r}: its network is frozen for {length} of {count_of(epochs, 'epoch')}, "
                f"while that of {', '.join(fixed)} learns in all of them; set policy_fraction to 0 for equal terms"
            )


def _has_fixed_path(arm: Arm) -> bool:
    method = arm.experiment.method
    return isinstance(method, BlockDropSettings) and not method.learns
