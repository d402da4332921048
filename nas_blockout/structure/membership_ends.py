"""To which end the membership probabilities of a layer came while they were learned.

The Blockout paper names three (section 6): they diverge to 0 and 1, which is a structure that was learned; they stay
where they began, so that the grouping is arbitrary and only regularizes; or all go to 1, so that a hierarchy does not
help. A layer may also lose its nodes, end in one cluster, have begun at 1, or be in between when training ends.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.memberships.description import collapse_of

End = Literal["diverged", "stayed", "all ones", "ones from the start", "all zeros", "one cluster", "in between"]

STAYED_MEAN = 0.1
"""Largest mean movement of P in a layer that stayed: a fifth of the way from one half to 0 or 1."""
STAYED_FAR = 0.25
"""A probability that moved further is half of the way from one half to 0 or 1."""
STAYED_FAR_SHARE = 0.05
"""Largest share of such probabilities in a layer that stayed: a few decided nodes are a structure."""
NEAR = 0.1
"""How near to 0 or 1 a probability counts as decided: 9 draws in 10 then equal the thresholded one."""
DECIDED_SHARE = 0.5
"""Least share of decided probabilities in a layer that diverged."""
SIDE_SHARE = 0.05
"""Least share of probabilities near 0, and of those near 1, in a layer that diverged: all on one side parts nothing."""


def end_of(first: Tensor, last: Tensor) -> End:
    """Say to which end the membership probabilities of one layer came.

    The first that applies: ``all zeros`` and ``all ones`` as of `collapse_of` (the mean is beyond .05 or .95), the
    latter ``ones from the start`` if P began there; ``stayed``, if P moved by at most `STAYED_MEAN` on average and at
    most `STAYED_FAR_SHARE` of it by more than `STAYED_FAR`, wherever it began; ``one cluster`` as of `collapse_of`;
    ``diverged``, if at least `DECIDED_SHARE` lies within `NEAR` of 0 or 1, and `SIDE_SHARE` or more on each side; else
    ``in between``.

    Args:
        first: P before training, shape ``(nodes, k)``, in [0, 1].
        last: P after it, likewise.

    Raises:
        ValueError: The shapes differ, or there is no probability.
    """
    if first.shape != last.shape or not last.numel():
        raise ValueError(
            f"first and last must be probabilities of the same nodes, got shapes {tuple(first.shape)} "
            f"and {tuple(last.shape)}"
        )
    collapse = collapse_of(last)
    if collapse == "all ones":
        return "ones from the start" if collapse_of(first) == "all ones" else "all ones"
    if collapse == "all zeros":
        return "all zeros"
    moved = (last - first).abs()
    if float(moved.mean()) <= STAYED_MEAN and _share(moved > STAYED_FAR) <= STAYED_FAR_SHARE:
        return "stayed"
    if collapse == "one cluster":
        return "one cluster"
    low, high = _share(last < NEAR), _share(last > 1 - NEAR)
    return "diverged" if low + high >= DECIDED_SHARE and min(low, high) >= SIDE_SHARE else "in between"


def ends_of(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> dict[str, End]:
    """Say it of every layer.

    Args:
        first: P by layer before training, shape ``(nodes, k)`` each.
        last: P after it, of the same layers.
    """
    return {name: end_of(first[name], p) for name, p in last.items()}


@torch.no_grad()
def learned_probabilities(model: object) -> dict[str, Tensor]:
    """Return a copy of the membership probabilities that a model learns, by layer; nothing for one that learns none."""
    if not isinstance(model, Blockout) or model.settings.mode == "hard-fixed":
        return {}
    return {name: p.detach().float().cpu().clone() for name, p in model.probabilities().items()}


def listed(probabilities: Mapping[str, Tensor]) -> dict[str, list[list[float]]]:
    """Return probabilities by layer as lists, rounded to four digits."""
    return {name: [[round(value, 4) for value in row] for row in p.tolist()] for name, p in probabilities.items()}


def _share(chosen: Tensor) -> float:
    return float(chosen.float().mean())
