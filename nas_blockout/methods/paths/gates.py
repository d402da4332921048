"""Gates of blocks, with gradient: how a policy learns other than by rewards."""

import torch
from torch import Tensor

from nas_blockout.randomness.batch_shards import uniform_rows
from nas_blockout.randomness.draws import Randomness


def straight_through_gates(logits: Tensor) -> Tensor:
    """Return gates that are 1 where the probability is .5 or more and else 0, with the gradient of the probability."""
    soft = torch.sigmoid(logits)
    return (soft >= 0.5).to(soft.dtype) + soft - soft.detach()


def gumbel_gates(logits: Tensor, generator: Randomness, *, temperature: float) -> Tensor:
    """Return gates drawn 1 with the probability ``sigmoid(logits)``, with the gradient of the relaxed draw.

    References:
        Maddison, Mnih, Teh. The Concrete Distribution. ICLR 2017, appendix B. Jang, Gu, Poole. Categorical
        Reparameterization with Gumbel-Softmax. ICLR 2017, section 2.2 for the hard draw.
    """
    tiny = torch.finfo(logits.dtype).tiny
    uniform = uniform_rows(logits, generator)
    noise = torch.log(uniform.clamp_min(tiny)) - torch.log1p(-uniform)
    soft = torch.sigmoid((logits + noise) / temperature)
    return (soft >= 0.5).to(soft.dtype) + soft - soft.detach()
