"""Whether the parts of an arm fit together: what would otherwise fail, or have no effect, once trials are paid for."""

from collections.abc import Iterator, Sequence

from nas_blockout.backbones import require_stages
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import Experiment, split_epochs
from nas_blockout.methods import METHODS
from nas_blockout.methods.dropcluster import DropClusterSettings
from search_spaces import SPACES, Context, TooFew, require_fit
from services.study_config.errors import Violation, violation_of

# No data has been read yet: a shape and a number of classes with which nothing fails that could fit any data.
_ANY_SHAPE, _MANY_CLASSES = (3, 64, 64), 1000


def incompatibilities(experiment: Experiment, spaces: Sequence[str], *, matched: bool) -> Iterator[Violation]:
    """Yield what does not fit together in an arm, with paths from the arm on.

    Args:
        experiment: Of the arm, before anything is searched.
        spaces: Names of its search spaces, all known.
        matched: Whether its cost must equal another's.
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
        pass  # a matter of sizes: `check_against_data` judges them
    except ValueError as error:
        yield violation_of(error, ("space",))


def _training(experiment: Experiment) -> Iterator[Violation]:
    training, derivation = experiment.training, experiment.derivation
    stages = (training,) if derivation is None else split_epochs(training, derivation)
    fewest = min(stage.epochs for stage in stages)
    if training.warmup_epochs > fewest:
        of_what = "of the training" if derivation is None else "of the shorter of its two stages"
        rule = f"must be at most {fewest}, the epochs {of_what}"
        yield Violation(("training", "warmup_epochs"), rule, repr(training.warmup_epochs), "warm up for fewer epochs")


def _method(experiment: Experiment) -> Iterator[Violation]:
    method, backbone = experiment.method, experiment.backbone
    if isinstance(method, DropClusterSettings) and method.start_epoch >= experiment.training.epochs:
        rule = f"must be below {experiment.training.epochs}, the epochs of the training: nothing would ever be dropped"
        yield Violation(("method", "start_epoch"), rule, repr(method.start_epoch))
    site = next(entry.site for entry in METHODS.values() if entry.settings is type(method))
    if isinstance(backbone, ResNetSettings) and backbone.regularized_stages == 0 and site == "maps":
        rule = "must be at least 1, or left out for all stages: the method would be placed nowhere"
        yield Violation(("backbone", "regularized_stages"), rule, "0")
