"""Small residual networks with BlockDrop around them, and images for them, as the tests of BlockDrop need them."""

import torch
from torch import Tensor

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(depth: int = 8, classes: int = 4) -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetSettings(depth=depth, width=0.25), (1, 8, 8), classes)


def dropping(depth: int = 8, classes: int = 4, **values) -> BlockDrop:
    chosen = BlockDropSettings(**{"policy_widths": (4, 6), **values})
    return BlockDrop(network(depth, classes), chosen, shape=(1, 8, 8))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=generator(seed))


def labels(count: int, classes: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(classes, (count,), generator=generator(seed))
