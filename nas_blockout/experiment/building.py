"""From an experiment to its network: with its method in place for training, and plain for what it ends in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import BACKBONES, dense_of, name_of, scaled_to, stages_of
from nas_blockout.backbones.branched import Sites, macs_of
from nas_blockout.data import Splits
from nas_blockout.experiment.described import Experiment
from nas_blockout.methods import METHODS, NoneSettings
from nas_blockout.methods.blockout import Blockout, BlockoutSettings


def build(experiment: Experiment, splits: Splits) -> nn.Module:
    """Return the network of an experiment before training, with initial weights decided by its seed.

    Args:
        experiment: What to build.
        splits: Give the shape of an image and the number of classes.
    """
    shape, classes = splits.shape, len(splits.class_names)
    backbone = experiment.backbone
    if experiment.target_macs is not None:
        backbone = scaled_to(backbone, experiment.target_macs, shape, classes)
    kind = BACKBONES[name_of(backbone)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        network = kind.build(backbone, shape, classes, experiment.architecture, _sites(experiment.method))
        if isinstance(experiment.method, BlockoutSettings):
            return Blockout(network, network.connections, experiment.method)  # type: ignore[arg-type]
        return network


def rebuild(experiment: Experiment, architecture: Architecture | None, splits: Splits) -> nn.Module:
    """Return the plain network that an experiment ends in, without trained weights or any trace of its method.

    Args:
        experiment: What was run.
        architecture: What it ended in; None for a network that is not built from stages.
        splits: Give the shape of an image and the number of classes.
    """
    return build(plain(experiment, architecture), splits)


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates an image of the convolutions and matrix products of a network.

    Args:
        model: In eval mode.
        images: One image, shape ``(1, channels, height, width)``.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops()) // 2


def dense_macs(experiment: Experiment, splits: Splits) -> int:
    """Return the multiply-accumulates an image of the dense network of an experiment."""
    stages = stages_of(experiment.backbone, splits.shape, len(splits.class_names))
    return macs_of(dense_of(stages), stages, splits.shape[0])


def _sites(method: Any) -> Sites:
    found = next(entry for entry in METHODS.values() if entry.settings is type(method))
    layer = found.layer
    if layer is None:
        return Sites()
    if found.site == "weights":
        return Sites(weights=lambda linear: layer(method, linear))
    place = lambda: layer(method)  # noqa: E731  # one factory for whichever site the method names
    return Sites(maps=place) if found.site == "maps" else Sites(nodes=place)


def plain(experiment: Experiment, architecture: Architecture | None) -> Experiment:
    """Return the experiment without its method and without a handover, over a given architecture."""
    return replace(
        experiment, method=NoneSettings(), architecture=architecture, distillation=None, pruning=None, confusion=None
    )


def plain_state(trained: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained values under the names of the plain network; wrapped linear layers are found inside."""
    inside = {name: f"{name.rpartition('.')[0]}.linear.{name.rpartition('.')[2]}" for name in plain}
    return {name: trained[name] if name in trained else trained[inside[name]] for name in plain}
