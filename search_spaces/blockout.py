"""Search spaces of Blockout: its structure learning, its clusters and its widths."""

from dataclasses import replace
from typing import cast

from nas_blockout.backbones import backbone_of, stages_of
from nas_blockout.experiment import Experiment, outlined
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings, Mode
from nas_blockout.networks import masked_connections, masked_widths
from search_spaces.trial import Context, Trial

_MOST_CLUSTERS = 8
_LEARNED: tuple[Mode, ...] = ("hard-learned", "soft-learned")
_STRUCTURE_LR = (10.0, 100.0)


def blockout(trial: Trial, context: Context) -> Experiment:
    """Vary clusters, widths, the learning rate of the structure, and whether training samples memberships C or uses P.

    Which layers are masked stays as the arm sets it. Parameters: ``blockout.clusters`` (2 to 8, at most the number of
    nodes of the narrowest layer with memberships), ``model.width`` (0.5
    to 1.5, a factor of all widths; only for backbones that can be scaled), ``blockout.structure_lr_multiplier`` (10 to
    100, logarithmic), ``blockout.mode`` (hard-learned, soft-learned, and hard-fixed unless a network is derived).

    Raises:
        ValueError: The arm's method is not blockout, the network cannot be built for these images, or it has no such
            layers.
    """
    experiment, method = context.experiment, _method(context, "blockout")
    backbone, kind = experiment.backbone, backbone_of(experiment.backbone)
    if kind.scaled is not None:
        backbone = kind.scaled(backbone, trial.suggest_float("model.width", 0.5, 1.5))
    if kind.stages is not None and method.masked in ("head", "all"):
        # Layers that are not masked count as well: recorded searches of `head` had these ranges.
        narrowest = min(stage.width for stage in stages_of(backbone, context.shape, context.classes))
    else:
        network = outlined(replace(experiment, backbone=backbone), context.shape, context.classes)
        masked = masked_connections(network.connections, method.masked)
        narrowest = min(masked_widths(network.connections, masked).values())
    modes = [*_LEARNED, *(["hard-fixed"] if experiment.derivation is None else [])]
    settings = replace(
        method,
        clusters=trial.suggest_int("blockout.clusters", min(2, narrowest), min(_MOST_CLUSTERS, narrowest)),
        structure_lr_multiplier=trial.suggest_float("blockout.structure_lr_multiplier", *_STRUCTURE_LR, log=True),
        mode=cast(Mode, trial.suggest_categorical("blockout.mode", modes)),
    )
    return replace(experiment, method=settings, backbone=backbone)


def structure(trial: Trial, context: Context) -> Experiment:
    """Vary the learning rate of the structure, the first layer's initial probability, and the penalty on MACs.

    Parameters: ``blockout.structure_lr_multiplier`` (10 to 100, logarithmic), ``blockout.first_probability`` (0.8
    to 0.98), ``blockout.cost_penalty`` (2 to 16, logarithmic).

    Raises:
        ValueError: The arm's method is not blockout.
    """
    settings = replace(
        _method(context, "structure"),
        structure_lr_multiplier=trial.suggest_float("blockout.structure_lr_multiplier", *_STRUCTURE_LR, log=True),
        first_probability=trial.suggest_float("blockout.first_probability", 0.8, 0.98),
        cost_penalty=trial.suggest_float("blockout.cost_penalty", 2.0, 16.0, log=True),
    )
    return replace(context.experiment, method=settings)


def _method(context: Context, space: str) -> BlockoutSettings:
    method = context.experiment.method
    if not isinstance(method, BlockoutSettings):
        raise ValueError(f"the space {space!r} needs an arm whose method is blockout")
    return method
