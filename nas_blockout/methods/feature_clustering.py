"""Label maps: which positions of a feature map belong together, learned from activations or drawn as a control.

A label map has shape ``(channels, positions)``, positions counted row by row, and holds whole numbers from 0 up. All
channels are clustered at once, each on its own. Descriptors are clustered by Euclidean distance.
"""

import math

import torch
from torch import Tensor

_MOST_ROUNDS = 50
_UNCHANGED = 1e-3  # share of positions that may still move when k-means stops
MAX_NUMBERS = 1 << 25  # in the largest tensor that k-means makes: 128 MiB in float32


def descriptors(activations: Tensor) -> Tensor:
    """Describe every position of every channel by its standardized activations over the images.

    Descriptors have mean 0 and length 1, so that the squared distance of two of them is ``2 - 2 * correlation``.
    Positions that never change, as under a dead unit, get zeros.

    Args:
        activations: Shape ``(images, channels, height, width)``.

    Returns:
        Shape ``(channels, height * width, images)``.
    """
    values = activations.flatten(2).permute(1, 2, 0).contiguous()
    values = values - values.mean(2, keepdim=True)
    length = values.norm(dim=2, keepdim=True)
    # divided by infinity: zero; a threshold, since the mean of a constant is not exact
    return values / torch.where(length > 1e-6 * length.amax().clamp_min(1e-30), length, torch.inf)


def kmeans(
    points: Tensor,
    clusters: int,
    *,
    generator: torch.Generator,
    start: Tensor | None = None,
    max_numbers: int = MAX_NUMBERS,
) -> Tensor:
    """Cluster the positions of all channels by k-means, as many channels at once as fit in memory.

    Args:
        points: Descriptors, shape ``(channels, positions, images)``.
        clusters: Clusters a channel, from 1 to the number of positions.
        generator: Source of randomness of the first centers, on the device of `points`.
        start: Label map to start from instead of drawn centers.
        max_numbers: Size of the largest tensor to make; channels are clustered in parts where more is needed.

    Returns:
        Label map, shape ``(channels, positions)``. Clusters may be empty where fewer positions differ.

    References:
        Arthur, Vassilvitskii. k-means++: The Advantages of Careful Seeding. SODA 2007; the best of ``2 + log k``
        candidates is taken for every center, as in scikit-learn.
    """
    # what takes most memory: distances to all centers, and the descriptors themselves
    size = max(1, max_numbers // (points.shape[1] * (clusters + points.shape[2])))
    labels = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        if start is None:
            centers = _drawn_centers(part, clusters, generator)
        else:
            centers = _centers(part, start[first : first + size], part[:, :clusters])
        labels.append(_lloyd(part, centers))
    return torch.cat(labels)


def rena(points: Tensor, clusters: int, *, height: int, width: int) -> Tensor:
    """Cluster the positions of all channels by recursive nearest agglomeration on the 4-neighbor lattice.

    In each round every cluster is joined with its nearest neighbor on the lattice, by the distance of their means, and
    chains of such pairs become one cluster. Where a round would leave fewer clusters than asked for, only the closest
    pairs are joined. Clusters are connected, and there is no giant one among them, as in single linkage.

    Args:
        points: Descriptors, shape ``(channels, height * width, images)``.
        clusters: Clusters a channel, from 1 to the number of positions.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        Label map, shape ``(channels, height * width)``, with exactly `clusters` clusters in every channel.

    References:
        Hoyos-Idrobo, Varoquaux, Kahn, Thirion. Recursive Nearest Agglomeration (ReNA): Fast Clustering for
        Approximation of Structured Signals. IEEE Transactions on Pattern Analysis and Machine Intelligence 41(3), 2019,
        algorithm 1.

    Differs from the paper in: a cluster's mean is over its positions, where the paper averages the averages of a round;
    and among the pairs of the last round the closest are joined, which the paper leaves open.
    """
    channels, positions, images = points.shape
    offsets = positions * torch.arange(channels)[:, None, None]
    edges = (_lattice(height, width) + offsets).transpose(0, 1).reshape(2, -1)
    means = points.reshape(-1, images).cpu()
    sizes = torch.ones(len(means), dtype=means.dtype)
    labels, channel_of = torch.arange(len(means)), torch.arange(channels).repeat_interleave(positions)
    while len(means) > channels * clusters:
        joined = _joined(means, edges, channel_of, clusters)
        group = _components(joined, len(means))
        count = int(group.max()) + 1
        totals = torch.zeros(count, images, dtype=means.dtype).index_add_(0, group, means * sizes[:, None])
        sizes = torch.zeros(count, dtype=means.dtype).index_add_(0, group, sizes)
        means = totals / sizes[:, None]
        channel_of = torch.empty(count, dtype=torch.int64).scatter_(0, group, channel_of)
        labels, edges = group[labels], _distinct(group[edges], count)
    return (labels.view(channels, positions) - clusters * torch.arange(channels)[:, None]).to(points.device)


def shuffled(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a label map with the same sizes of clusters but random places, in every channel on its own.

    Args:
        labels: Label map, shape ``(channels, positions)``.
        generator: Source of randomness, on the device of `labels`.
    """
    return labels.gather(1, _random_order(labels, generator))


def cells(
    channels: int, clusters: int, *, height: int, width: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw random connected cells: they grow from random positions, one step in each round, until they meet.

    Args:
        channels: Label maps to draw.
        clusters: Cells a channel, from 1 to the number of positions.
        height: Rows of the map.
        width: Columns of the map.
        generator: Source of randomness, on `device`.
        device: Of the result.

    Returns:
        Label map, shape ``(channels, height * width)``.
    """
    free = clusters  # larger than every label, so that a neighbor with a label always wins the minimum below
    labels = torch.full((channels, height * width), free, device=device)
    centers = _random_order(labels, generator)[:, :clusters]
    labels.scatter_(1, centers, torch.arange(clusters, device=device).expand(channels, -1))
    grid = labels.view(channels, height, width)
    while bool((grid == free).any()):
        padded = torch.nn.functional.pad(grid, (1, 1, 1, 1), value=free)
        around = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
        nearest = torch.stack(around).amin(0)
        grid = torch.where(grid == free, nearest, grid)
    return grid.flatten(1)


def _drawn_centers(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw the first centers by k-means++, shape ``(channels, clusters, images)``, all channels at once."""
    channels, positions, images = points.shape
    candidates, every = 2 + int(math.log(clusters)), torch.arange(channels, device=points.device)
    squares = points.square().sum(2)
    centers = points.new_empty(channels, clusters, images)
    nearest = torch.ones_like(squares)  # so that the first center is drawn evenly
    for number in range(clusters):
        # Positions are drawn in proportion to their squared distance from the nearest center so far.
        reach = nearest.cumsum(1)
        drawn = torch.rand(channels, candidates, generator=generator, dtype=points.dtype, device=points.device)
        index = torch.searchsorted(reach, drawn * reach[:, -1:], right=True).clamp_(max=positions - 1)
        chosen = points.gather(1, index[:, :, None].expand(-1, -1, images))
        level = squares[:, :, None] + squares.gather(1, index)[:, None, :]
        # |p|^2 + |c|^2 - 2 p c, which rounding may take below 0
        distance = torch.baddbmm(level, points, chosen.transpose(1, 2), alpha=-2).clamp_(min=0)
        if number:
            distance = torch.minimum(distance, nearest[:, :, None])
        best = distance.sum(1).argmin(1)
        nearest, centers[:, number] = distance[every, :, best], chosen[every, best]
    return centers


def _lloyd(points: Tensor, centers: Tensor) -> Tensor:
    """Move centers to the means of their positions until hardly a label changes; return the labels.

    On an accelerator the rounds after that change nothing: to find out that they can be left out would wait for it.
    """
    labels = _nearest(points, centers)
    settled = torch.zeros((), dtype=torch.bool, device=points.device)
    for _ in range(_MOST_ROUNDS):
        centers = _centers(points, labels, centers)
        moved = _nearest(points, centers)
        share = (moved != labels).float().mean().double()
        labels = torch.where(settled, labels, moved)
        settled |= share <= _UNCHANGED
        if points.device.type == "cpu" and settled:
            break
    return labels


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    # |c|^2 - 2 p c: |p|^2 is the same for all centers
    return torch.baddbmm(centers.square().sum(2)[:, None], points, centers.transpose(1, 2), alpha=-2).argmin(2)


def _centers(points: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Return the mean of every cluster; an empty one keeps its center."""
    channels, clusters, images = before.shape
    index = (labels + clusters * torch.arange(channels, device=points.device)[:, None]).flatten()
    totals = points.new_zeros(channels * clusters, images).index_add_(0, index, points.reshape(-1, images))
    # Not `bincount`, which waits for the device.
    sizes = torch.zeros(channels * clusters, dtype=index.dtype, device=index.device)
    sizes = sizes.index_add_(0, index, torch.ones_like(index))[:, None]
    return torch.where(sizes > 0, totals / sizes, before.reshape(-1, images)).view_as(before)


def _lattice(height: int, width: int) -> Tensor:
    """Return the pairs of neighbors, shape ``(2, pairs)``."""
    places = torch.arange(height * width).view(height, width)
    across = torch.stack((places[:, :-1].flatten(), places[:, 1:].flatten()))
    down = torch.stack((places[:-1].flatten(), places[1:].flatten()))
    return torch.cat((across, down), 1)


def _joined(means: Tensor, edges: Tensor, channel_of: Tensor, clusters: int) -> Tensor:
    """Return the pairs to join in one round: every cluster and its nearest neighbor, or the closest of these pairs."""
    distance = (means[edges[0]] - means[edges[1]]).square().sum(1)
    rank = torch.empty_like(edges[0])
    rank[distance.argsort(stable=True)] = torch.arange(len(rank))  # a total order: no cycle of nearest neighbors
    alone = len(rank)  # what a cluster without a neighbor keeps
    best = torch.full((len(means),), alone).scatter_reduce(0, edges.flatten(), rank.repeat(2), "amin")
    by_rank = torch.empty_like(rank).scatter_(0, rank, torch.arange(len(rank)))
    # Sorted by distance, and a forest: each pair removes one cluster.
    chosen = edges[:, by_rank[best[best < alone].unique()]]
    channel = channel_of[chosen[0]]
    order = channel.argsort(stable=True)
    counts = torch.bincount(channel, minlength=int(channel_of[-1]) + 1)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[channel[order]]
    spare = torch.bincount(channel_of) - clusters
    return chosen[:, order[place < spare[channel[order]]]]


def _components(pairs: Tensor, nodes: int) -> Tensor:
    """Return the number of the connected component of every node, in the order of their first nodes."""
    from scipy.sparse import coo_matrix  # slow to import, and few methods need it
    from scipy.sparse.csgraph import connected_components

    first, second = pairs.numpy()
    graph = coo_matrix((torch.ones(len(first)).numpy(), (first, second)), shape=(nodes, nodes))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).to(torch.int64)


def _distinct(edges: Tensor, nodes: int) -> Tensor:
    low, high = edges.amin(0), edges.amax(0)
    codes = (low * nodes + high)[low != high].unique()
    return torch.stack((codes // nodes, codes % nodes))


def _random_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(labels.shape, generator=generator, device=labels.device).argsort(1)
