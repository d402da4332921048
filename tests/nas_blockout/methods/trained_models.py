"""Small models under every method, as an experiment builds them, for tests of how their training steps are computed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.experiment import Experiment
from nas_blockout.experiment.builder import build
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.dropblock import DropBlockSettings
from nas_blockout.methods.dropcluster import DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnectSettings
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.methods.memberships.blockout_settings import PAPER, PRETRAINED, BlockoutSettings
from nas_blockout.methods.none import NoneSettings
from nas_blockout.methods.spatial_dropout import SpatialDropoutSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.training import Loaders
from nas_blockout.training_protocol import TrainableLayer, TrainableModel, trainable

CLASSES, SIDE = 4, 8
EPOCHS = 4

METHODS: dict[str, Any] = {
    "none": NoneSettings(),
    "dropout": DropoutSettings(0.3),
    "spatial_dropout": SpatialDropoutSettings(0.3),
    "dropconnect": DropConnectSettings(0.3),
    "dropconnect, a mask a batch": DropConnectSettings(0.3, masks="batch"),
    "dropblock": DropBlockSettings(0.3),
    "dropblock, exact": DropBlockSettings(0.3, calibration="exact"),
    "dropcluster": DropClusterSettings(0.3, cluster_size=4),
    "blockout": BlockoutSettings(clusters=2),
    "blockout, paper": PAPER,
    "blockout, binary": PRETRAINED,
    "blockout, straight-through": BlockoutSettings(clusters=2, estimator="straight-through"),
    "blockout, arm": BlockoutSettings(clusters=2, estimator="arm"),
    "blockout, fixed": BlockoutSettings(clusters=2, mode="hard-fixed"),
    "blockout, soft": BlockoutSettings(clusters=2, mode="soft-learned"),
    "darts": DartsSettings(),
    "darts, gumbel": DartsSettings(branches=2, split_layers=2, shared=0.2, relaxation="gumbel"),
    "blockdrop": BlockDropSettings(pretrain_fraction=0.25, policy_fraction=0.25),
    "blockdrop, gumbel": BlockDropSettings(pretrain_fraction=0, policy_fraction=0.25, estimator="gumbel"),
    "blockdrop, straight-through": BlockDropSettings(pretrain_fraction=0, estimator="straight-through"),
    "blockdrop, static": BlockDropSettings(pretrain_fraction=0, policy="static"),
    "blockdrop, spread": BlockDropSettings(policy="spread"),
}
"""Settings of every method, with the variants whose steps are computed otherwise."""


def model_of(name: str, *, seed: int = 0) -> TrainableModel:
    """The model of a method on a network for images of 8 x 8 pixels."""
    method = METHODS[name]
    wide = ConvNetSettings(channels=(6, 8), hidden=(12,))
    backbone = ResNetSettings(depth=8, width=0.25) if isinstance(method, BlockDropSettings) else wide
    splits = SimpleNamespace(shape=(1, SIDE, SIDE), class_names=tuple(map(str, range(CLASSES))))
    return trainable(build(Experiment(backbone=backbone, method=method, seed=seed), splits))


def layers_of(model: TrainableModel) -> list[TrainableLayer]:
    return [module for module in model.modules() if isinstance(module, TrainableLayer)]


def prepared(name: str, epoch: int = EPOCHS - 1) -> TrainableModel:
    """A model in training, as the loop leaves it before the first step of an epoch."""
    model = model_of(name).train()
    for layer in layers_of(model):
        layer.prepare_epoch(epoch, EPOCHS)
    if any(layer.needs_calibration for layer in layers_of(model)):
        model.eval()(batch(32)[0])
        model.train()
    return model


def batch(images: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 1, SIDE, SIDE, generator=generator)
    return x, torch.randint(0, CLASSES, (images,), generator=generator)


@dataclass
class Images:
    """Images in memory, shuffled as the loader of an experiment does it."""

    count: int
    batch_size: int
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.y = batch(self.count, seed=1)

    def __len__(self) -> int:
        return self.count

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(self.count) if generator is None else torch.randperm(self.count, generator=generator)
        for rows in order.split(self.batch_size)[first:]:
            yield self.x[rows], self.y[rows]

    def sample(self, images: int, generator: torch.Generator) -> Iterator[Tensor]:
        yield from self.x[torch.randperm(self.count, generator=generator)[:images]].split(self.batch_size)


def loaders(train: int = 44, validation: int = 20, batch_size: int = 12) -> Loaders:
    return Loaders(Images(train, batch_size), Images(validation, batch_size))
