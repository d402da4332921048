"""What is said of P once an epoch: how far it is decided, how many clusters a node has, and whether it collapsed."""

from typing import Literal, get_args

import torch
from torch import Tensor

from nas_blockout.training_protocol import TelemetryValue

Collapse = Literal["none", "all ones", "all zeros", "one cluster"]

DENSITY_BINS = 20
_COLLAPSED = 0.95


def collapse_of(p: Tensor) -> Collapse:
    """Say whether probabilities have lost their structure: all ones, all zeros, or all in one cluster.

    Args:
        p: P_j, shape ``(nodes, k)``.
    """
    mean = float(p.mean())
    if mean > _COLLAPSED:
        return "all ones"
    if mean < 1 - _COLLAPSED:
        return "all zeros"
    by_cluster = p.mean(0)
    return "one cluster" if p.shape[1] > 1 and float(by_cluster.max() / by_cluster.sum()) > _COLLAPSED else "none"


def shared_pairs(p: Tensor) -> Tensor:
    """Return the expected share of the pairs of clusters that a node belongs to, in [0, 1], mean over nodes.

    Args:
        p: P_j, shape ``(nodes, k)``, k of 2 or more.

    References:
        Kim, Park, Kim, Hwang. SplitNet: Learning to Semantically Split Deep Networks for Parameter Reduction and Model
        Parallelization. ICML 2017, the disjoint assignment of section 3.2; theirs are softmax assignments.
    """
    k = p.shape[1]
    return (p.sum(1).square() - p.square().sum(1)).mean() / (k * (k - 1))


def describe(p: Tensor) -> dict[str, TelemetryValue]:
    """Return the telemetry of one layer by key.

    Args:
        p: P_j, shape ``(nodes, k)``.
    """
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0, dtype=p.dtype))
    density = torch.histc(p.float().cpu(), DENSITY_BINS, 0, 1) / p.numel()
    alarms: tuple[Collapse, ...] = get_args(Collapse)
    return {
        "mean": float(p.mean()),
        "median": float(p.median()),
        "entropy": float(entropy.mean()),
        "separated": float(((p < 0.05) | (p > 0.95)).float().mean()),
        "clusters": float(p.sum(1).mean()),
        "density": [float(value) for value in density],
        "collapse": float(alarms.index(collapse_of(p))),
    }
