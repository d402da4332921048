"""Branches from confusions: classes that a dense network confuses share a branch, as in HD-CNN."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas_blockout.networks import Branchable, Connection
from nas_blockout.settings_fields import Range
from nas_blockout.structure.two_stages import TwoStageSettings
from nas_blockout.structure.wiring import Wiring

Clustering = Literal["spectral", "affinity"]
Weights = Literal["inherited", "scratch"]
_OVERLAP = 5.0  # gamma of Yan et al., section 4.2


@dataclass(frozen=True, slots=True)
class ConfusionSettings(TwoStageSettings):
    """Settings of branches from confusions of a dense network.

    Args:
        clustering: ``spectral`` into a given number of branches, or ``affinity`` propagation, which finds the number.
        branches: Number of branches of the spectral clustering.
        overlap: Whether a class also joins every branch that holds at least ``1 / (5 branches)`` of its probability.
        split_layers: Number of layers that branch, counted backward from the one before the classes; where several
            layers are as far from the classes, they count as one. If affinity propagation finds more branches than a
            layer has nodes, this layer and those before it are not split.
        weights: ``inherited`` keeps the dense network's weights, ``scratch`` initializes new ones.
    """

    clustering: Clustering = "spectral"
    branches: Annotated[int, Range(ge=2)] = 3
    overlap: bool = False
    split_layers: Annotated[int, Range(ge=1)] = 1
    weights: Weights = "inherited"


@torch.no_grad()
def soft_confusion(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: int, *, device: str | torch.device = "cpu"
) -> Tensor:
    """Return the mean probabilities that a network in eval mode gives the images of each class.

    Args:
        network: Gives logits.
        batches: Validation images and labels.
        classes: Number of classes.
        device: Where the network is.

    Returns:
        Shape ``(classes, classes)``, true class first, float64 on the CPU; every row sums to one.
    """
    total = torch.zeros(classes, classes, dtype=torch.float64)
    network.eval()
    for x, y in batches:
        total.index_add_(0, y.cpu(), network(x.to(device)).softmax(1).double().cpu())
    return total / total.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def class_branches(confusion: Tensor, settings: ConfusionSettings, *, seed: int) -> Tensor:
    """Return which branches each class belongs to.

    The confusion matrix is symmetrized; classes that share probability are alike. With overlap a class joins every
    branch that holds enough of its own probability.

    Args:
        confusion: Rows of mean probabilities, shape ``(classes, classes)``.
        settings: How to cluster.
        seed: Of the clustering.

    Returns:
        Booleans, shape ``(classes, branches)``; every class has a branch and every branch a class.

    Raises:
        ValueError: There are more branches than classes.

    References:
        Yan et al. HD-CNN: Hierarchical Deep Convolutional Neural Networks for Large Scale Visual Recognition. ICCV
        2015, section 4.2.
    """
    classes = len(confusion)
    if settings.clustering == "spectral" and settings.branches > classes:
        raise ValueError(f"branches must lie in 2..classes, got branches={settings.branches} for {classes} classes")
    alike = ((confusion + confusion.T) / 2).numpy().copy()
    np.fill_diagonal(alike, 0)  # how sure the network is of a class says nothing of its neighbors
    labels = _clusters(alike, settings, seed % 2**32)  # scikit-learn takes 32 bits, a study's seeds have 63
    chosen = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    hard = torch.nn.functional.one_hot(chosen).bool()
    if settings.overlap:
        hard |= confusion @ hard.double() >= 1 / (_OVERLAP * hard.shape[1])
    return hard


def most_branches(network: Branchable) -> tuple[int, ...]:
    """Return by the number of layers that branch into how many branches they can: as many as their fewest nodes.

    Args:
        network: Dense; its rigid layers, which stay whole, set no limit but as the classes.

    Returns:
        For one layer, for two, and so on up to the one that is farthest from the classes.
    """
    distances, (*_, last) = Wiring.of(network).distances(), network.layers
    able = {far: [network.layers[last]] for far in range(max(distances.values()) + 1)}
    for name, far in distances.items():
        if name not in network.rigid:
            able[far].append(network.layers[name])
    return tuple(accumulate((min(able[far]) for far in sorted(able)[1:]), min))


@torch.no_grad()
def memberships(network: Branchable, classes: Tensor, settings: ConfusionSettings) -> dict[str, Tensor]:
    """Return hard memberships of all nodes of a dense network: a shared trunk, then a branch for every node.

    The nodes of a layer that branches are shared out in proportion to the classes of the branches, each to the branch
    whose nodes, or classes, of the layers after read it most (the assignment with the largest sum of squared weights).
    Layers after are those fewer edges from the classes.

    Args:
        network: Dense.
        classes: Branches of every class, shape ``(classes, branches)``.
        settings: How many layers branch.

    Returns:
        Booleans, shape ``(nodes, branches)``, by layer.

    Raises:
        ValueError: A layer that should branch does not exist or has fewer nodes than the requested branches.
    """
    widths, distances, split_layers = network.layers, Wiring.of(network).distances(), settings.split_layers
    deepest = max(distances.values())
    if split_layers > deepest:
        raise ValueError(f"split_layers must lie in 1..{deepest}, got split_layers={settings.split_layers}")
    narrow_rigid = {name for name in network.rigid if widths[name] < classes.shape[1]}  # of all branches, as the trunk
    if settings.clustering == "affinity":  # nobody could know how many branches it would find
        narrow = [
            far - 1
            for name, far in distances.items()
            if far and widths[name] < classes.shape[1] and name not in narrow_rigid
        ]
        split_layers = min(split_layers, *narrow, deepest)
    classes = classes.to(next(network.parameters()).device)
    branches: dict[str, Tensor] = {}
    for name, far in distances.items():  # from the classes on
        if not far:
            branches[name] = classes
        elif far <= split_layers and name not in narrow_rigid:
            after = {each: value for each, value in branches.items() if distances[each] < far}
            branches[name] = _shared_out(_read_by(network, name, after), classes, name)
    trunk = {name: classes.new_ones(width, classes.shape[1]) for name, width in widths.items() if name not in branches}
    return {name: (branches | trunk)[name] for name in widths}


def _read_by(network: Branchable, name: str, after: Mapping[str, Tensor]) -> Tensor:
    """Return how much each branch of the layers after reads each node of a layer, shape ``(nodes, branches)``."""
    found = []
    for connection in network.connections:
        if (
            connection.source_nodes is None
            or name not in connection.sources
            or after.keys().isdisjoint(connection.targets)
        ):
            continue
        energy = network.get_parameter(connection.weight).square()
        read = energy.sum(tuple(range(2, energy.dim()))) if energy.dim() > 2 else energy
        by_position = _by_position(read, connection, after)
        found.append(connection.source_nodes.sums(by_position)[connection.sources.index(name)])
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def _by_position(read: Tensor, connection: Connection, after: Mapping[str, Tensor]) -> Tensor:
    """Return how much each branch reads each position of what a weight reads."""
    example = next(iter(after.values()))
    known = {
        each: after.get(each, example.new_zeros(width, example.shape[1]))
        for each, width in connection.target_nodes.layers
    }
    branches = connection.target_nodes.of(known).to(read.dtype)
    if connection.groups == 1:
        return read.T @ branches
    by_group = (each.unflatten(0, (connection.groups, -1)) for each in (read, branches))
    return torch.einsum("goi,gob->gib", *by_group).flatten(0, 1)


def _clusters(alike: np.ndarray, settings: ConfusionSettings, seed: int) -> np.ndarray:
    from sklearn.cluster import AffinityPropagation, SpectralClustering  # which takes two seconds, and few ask for it
    from sklearn.exceptions import ConvergenceWarning

    if settings.clustering == "spectral":
        # a little of every class in every other: the graph stays connected when two classes are never confused
        graph = alike + 1e-6 * max(float(alike.max()), 1e-12)
        return np.asarray(
            SpectralClustering(settings.branches, affinity="precomputed", random_state=seed).fit_predict(graph)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # seen below, by the labels
        labels = AffinityPropagation(affinity="precomputed", damping=0.9, max_iter=1000, random_state=seed).fit_predict(
            alike
        )
    # Where it does not converge, every label is -1: one branch for all, which is the dense network.
    return np.zeros(len(alike), dtype=int) if (labels < 0).any() else np.asarray(labels)


def _shared_out(affinity: Tensor, classes: Tensor, name: str) -> Tensor:
    """Assign every node one branch, in proportion to the classes of the branches and at least one each."""
    from scipy.optimize import linear_sum_assignment  # slow to import, as above

    nodes, branches = affinity.shape
    if nodes < branches:
        raise ValueError(f"a layer that branches needs a node for each of {branches} branches, {name!r} has {nodes}")
    shares = classes.sum(0).double() / classes.sum()
    # With overlap a class counts in each of its branches.
    quota = [max(1, int(share * nodes)) for share in shares.tolist()]
    # Rounding down and one node at least for each: what is too much goes from the largest, what is left to the first.
    while sum(quota) > nodes:
        quota[quota.index(max(quota))] -= 1
    for extra in range(nodes - sum(quota)):
        quota[extra % branches] += 1
    places = torch.repeat_interleave(torch.arange(branches), torch.tensor(quota))
    value = affinity.cpu().double()
    # each branch's column by its sum, or a branch with large weights would draw all nodes
    scaled = value / value.sum(0, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    rows, columns = linear_sum_assignment(scaled[:, places].numpy(), maximize=True)
    assigned = torch.zeros(nodes, branches, dtype=torch.bool)
    assigned[torch.from_numpy(rows), places[torch.from_numpy(columns)]] = True
    return assigned.to(affinity.device)
