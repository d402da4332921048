"""Structured pruning by magnitude: what a trained dense network would keep, in the terms in which Blockout says it.

A node's magnitude takes the place of its membership in a single cluster, so that the threshold, the clean-up, the
transplant of the weights and the proof of equality are those of distillation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nas_blockout.backbones.branched import BranchedNetwork, BranchedStage


@dataclass(frozen=True, slots=True)
class PruningSettings:
    """How a trained dense network becomes a narrower one.

    Args:
        target_macs: Share of the dense MACs that is kept at most, in 0..1.
        learn_share: Share of the epochs spent on the dense network, in 0..1 exclusive; the rest trains what is kept.
        learning_rate_scale: Peak learning rate of the second part as a multiple of the experiment's, above 0.
        soft_targets: Weight of the soft outputs of the dense network in the loss of the second part,
            in 0..1; 0 for labels alone. The teacher's forward passes are no sample passes, but take their seconds and
            are counted in ``teacher_passes``.
        temperature: Of the soft outputs, above 0.
    """

    target_macs: float = 0.5
    learn_share: float = 0.5
    learning_rate_scale: float = 2 / 3
    soft_targets: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.target_macs <= 1:
            raise ValueError(f"target_macs must lie in 0..1, got target_macs={self.target_macs}")
        if not 0 < self.learn_share < 1:
            raise ValueError(f"learn_share must lie between 0 and 1, got learn_share={self.learn_share}")
        if not self.learning_rate_scale > 0:
            raise ValueError(f"learning_rate_scale must be above 0, got {self.learning_rate_scale}")
        if not (0 <= self.soft_targets <= 1 and self.temperature > 0):
            raise ValueError(
                f"soft_targets must lie in 0..1 and temperature be above 0, got {self.soft_targets} and "
                f"{self.temperature}"
            )


@torch.no_grad()
def magnitudes(network: BranchedNetwork) -> dict[str, Tensor]:
    r"""Return the importance of every node of a dense network, comparable between layers.

    .. math:: I_t = \tfrac{1}{3} \left( \|W_{t,\cdot}\|^2 + \gamma_t^2 + \|W'_{\cdot,t}\|^2 \right)

    divided by its mean over the layer, where W are the weights that the node ends, :math:`\gamma` is its scale in
    batch normalisation and W' are the weights that read it.

    Args:
        network: Dense, built from stages.

    Returns:
        For every stage ``I / (1 + I)``, in 0..1, shape ``(nodes, 1)``; ones for the classes, which are all kept.

    References:
        Fang, Ma, Song, Mi, Wang. DepGraph: Towards Any Structural Pruning. CVPR 2023, section 3.3 (the group of
        parameters that stand or fall together), there with the magnitudes of He, Zhang, Sun and of Li et al. (2017).
    """
    found: dict[str, Tensor] = {}
    for stage, after in zip(network.plan, network.plan[1:], strict=False):
        own, reader = network.stages[stage.name], network.stages[after.name]
        assert isinstance(own, BranchedStage)
        assert isinstance(reader, BranchedStage)
        weight = own.get_parameter("operations.0.weight")
        parts = [weight.flatten(1).square().sum(1)]
        if own.normalise is not None and own.normalise.weight is not None:
            parts.append(own.normalise.weight.square())
        parts.append(reader.get_parameter("operations.0.weight").transpose(0, 1).flatten(1).square().sum(1))
        importance = torch.stack(parts).mean(0)
        importance = importance / importance.mean().clamp_min(torch.finfo(importance.dtype).tiny)
        found[stage.name] = (importance / (1 + importance))[:, None]
    classes = network.plan[-1]
    found[classes.name] = torch.ones(classes.width, 1, dtype=weight.dtype, device=weight.device)
    return found
