"""Structured pruning by magnitude: the nodes to keep of a trained dense network, as memberships like Blockout's.

A node's magnitude takes the place of its membership in a single cluster, so that the threshold, the clean-up, the
transplant of the weights and the proof of equality are those of distillation. Torch-Pruning, given the same network,
removes the same nodes (``benchmarks/rivals.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from nas_blockout.backbones.branched import BranchedNetwork, BranchedStage
from nas_blockout.settings_fields import Range
from nas_blockout.structure.two_stages import TwoStageSettings


@dataclass(frozen=True, slots=True)
class PruningSettings(TwoStageSettings):
    """Settings of pruning: how a trained dense network becomes a narrower one.

    Args:
        target_macs: Largest share of the dense MACs that is kept.
    """

    target_macs: Annotated[float, Range(gt=0, le=1)] = 0.5


@torch.no_grad()
def magnitudes(network: BranchedNetwork, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    r"""Return the importance of every node of a dense network, comparable between layers.

    .. math:: I_t = \tfrac{1}{3} \left( \|W_{t,\cdot}\|^2 + \gamma_t^2 + \|W'_{\cdot,t}\|^2 \right)

    divided by its mean over the layer, where W are the weights that the node ends, :math:`\gamma` is its scale in
    batch normalization and W' are the weights that read it.

    Args:
        network: Dense, built from stages.
        weights: Values in the place of the network's own, by name, such as those under masks.

    Returns:
        For every stage ``I / (1 + I)``, in [0, 1], shape ``(nodes, 1)``; ones for the classes, which are all kept.

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: Toward Any Structural Pruning. CVPR 2023, section 3.3 (the group of
        parameters that stand or fall together), there with the magnitudes of He, Zhang, Sun and of Li et al. (2017).
    """
    values = {**dict(network.named_parameters()), **(weights or {})}
    magnitudes: dict[str, Tensor] = {}
    # Each layer but the classes, with the one that reads it
    for stage, after in zip(network.plan, network.plan[1:], strict=False):
        layer = network.stages[stage.name]
        assert isinstance(layer, BranchedStage)
        weight = values[f"stages.{stage.name}.operations.0.weight"]
        parts = [weight.flatten(1).square().sum(1)]
        if layer.normalize is not None and layer.normalize.weight is not None:
            parts.append(layer.normalize.weight.square())
        read = values[f"stages.{after.name}.operations.0.weight"]
        parts.append(read.transpose(0, 1).flatten(1).square().sum(1))
        importance = torch.stack(parts).mean(0)
        importance = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        magnitudes[stage.name] = (importance / (1 + importance))[:, None]
    classes = network.plan[-1]
    magnitudes[classes.name] = torch.ones(classes.width, 1, dtype=weight.dtype, device=weight.device)
    return magnitudes
