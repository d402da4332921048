"""Checks that the parts of an arm fit together; otherwise trials would fail, or settings would have no effect."""

from collections.abc import Iterator, Sequence

from nas_blockout.backbones import require_stages
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import Experiment, split_epochs
from nas_blockout.methods import METHODS
from nas_blockout.methods.dropcluster import DropClusterSettings
from search_spaces import SPACES, Context, TooFew, require_fit
from services.study_config.errors import Violation, violation_of

# The data has not been read yet. With this shape and number of classes, an arm that fits some data passes the checks.
_ANY_SHAPE, _MANY_CLASSES = (3, 64, 64), 1000


def incompatibilities(experiment: Experiment, spaces: Sequence[str], *, matched: bool) -> Iterator[Violation]:
    """Yield the settings of an arm that do not fit together, with paths relative to the arm.

    Args:
        experiment: Experiment of the arm before the search.
        spaces: Names of the search spaces, all of which exist.
        matched: Whether the cost of the arm is matched to that of another arm.
    """
    yield from _training(experiment)
    yield from _method(experiment)
    if matched:
        try:
            require_stages(experiment.backbone, "match")
        except ValueError as error:
            yield violation_of(error, ())
    try:
        require_fit([SPACES[space] for space in spaces], Context(experiment, _ANY_SHAPE, _MANY_CLASSES))
    except TooFew:
        pass  # depends on the data: `check_against_data` checks it
    except ValueError as error:
        yield violation_of(error, ("space",))


def _training(experiment: Experiment) -> Iterator[Violation]:
    training, derivation = experiment.training, experiment.derivation
    stages = (training,) if derivation is None else split_epochs(training, derivation)
    fewest = min(stage.epochs for stage in stages)  # every stage has a learning rate schedule, with its own warm-up
    if training.warmup_epochs > fewest:
        of_what = "of the training" if derivation is None else "of the shorter of its two stages"
        rule = f"must be at most {fewest}, the epochs {of_what}"
        yield Violation(("training", "warmup_epochs"), rule, repr(training.warmup_epochs), "warm up for fewer epochs")


def _method(experiment: Experiment) -> Iterator[Violation]:
    method, backbone = experiment.method, experiment.backbone
    if isinstance(method, DropClusterSettings) and method.start_epoch >= experiment.training.epochs:
        epochs = experiment.training.epochs
        rule = f"must be below {epochs}, the epochs of the training; otherwise nothing would be dropped"
        yield Violation(("method", "start_epoch"), rule, repr(method.start_epoch))
    site = next(entry.site for entry in METHODS.values() if entry.settings is type(method))
    if isinstance(backbone, ResNetSettings) and backbone.regularized_stages == 0 and site == "maps":
        rule = "must be at least 1, or left out for all stages; otherwise the method has no effect"
        yield Violation(("backbone", "regularized_stages"), rule, "0")
