"""Figures of learned membership probabilities: densities, projections, clusters per class, and expected masks.

References:
    Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, figures 2,
    4, 7, 8 and 9.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from nas_blockout.plots.samples import Image, Sample, SampleRow, draw_samples, samples_height
from nas_blockout.plots.style.canvas import (
    NARROW,
    WIDE,
    Array,
    Key,
    amount_axis,
    bare,
    canvas,
    clean,
    heat_image,
    legend,
    legend_height,
    padded,
    panel,
    shorten,
    small_multiples,
    text_width,
    title,
)
from nas_blockout.plots.style.labels import place_labels
from nas_blockout.plots.style.theme import CLUSTERS, INK, MUTED, PAPER, SHOWN, SMALL, cluster_color, styled
from nas_blockout.serialization import count_of

# Limits that keep an SVG small and legible: cells of a mask in each direction, nodes of a panel, classes as rows.
_MOST_CELLS = 96
_MOST_NODES = 1500
_FEW_CLASSES = 20


@styled
def figure_density(
    densities: Mapping[str, ArrayLike], medians: Mapping[str, ArrayLike], *, epochs: Sequence[float]
) -> Figure:
    """Draw one panel per layer: the distribution of the entries of P in each epoch, with the median as a line.

    Args:
        densities: For each layer the shares of entries in equal bins from 0 to 1, (epochs, bins).
        medians: For each layer the median, (epochs,).
        epochs: Epoch numbers, increasing.
    """
    figure, panels = small_multiples(len(densities), height=84, columns=2 if len(densities) < 5 else 3)
    for axes, (layer, density) in zip(panels, densities.items(), strict=True):
        shares = np.sqrt(np.asarray(density, dtype=np.float64).T)  # so that bins with few entries are visible
        extent = (epochs[0] - 0.5, epochs[-1] + 0.5, 0.0, 1.0)
        _raster(axes, heat_image(shares), extent=extent, origin="lower")
        # A light outline, since the median often runs through the darkest bins.
        halo = [withStroke(linewidth=3.2, foreground=PAPER)]
        axes.plot(epochs, np.asarray(medians[layer]), color=INK, lw=1.5, path_effects=halo)
        axes.set_ylim(0, 1)
        lowest, _, highest = axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
        # The outermost labels are drawn inside, so that those of neighboring rows of panels do not touch.
        lowest.label1.set_verticalalignment("bottom")
        highest.label1.set_verticalalignment("top")
        amount_axis(axes, ticks=4)
        title(axes, layer)
    figure.supxlabel("epoch", size=SMALL, color=MUTED, y=4 / (figure.get_size_inches()[1] * 72), va="bottom")
    figure.supylabel("membership probability", size=SMALL, color=MUTED, x=2 / NARROW, ha="left")
    return figure


def _raster(axes: Axes, image: Array, *, extent: tuple[float, float, float, float], origin: str = "upper") -> None:
    assert origin in ("upper", "lower")
    axes.imshow(image, aspect="auto", interpolation="none", extent=extent, origin=origin)  # type: ignore[arg-type]
    axes.grid(visible=False)


def project(probabilities: Mapping[str, ArrayLike]) -> tuple[dict[str, Array], tuple[float, float]]:
    """Project the rows of all layers onto their first two principal components, with one projection for all layers.

    Returns:
        The projected rows of each layer, (nodes, 2), and the share of the variance on each axis. Signs are chosen so
        that the largest loading of each axis is positive.
    """
    # One projection for all layers: the same cluster is then in the same place in every panel.
    layers = {name: np.asarray(p, dtype=np.float64) for name, p in probabilities.items()}
    stacked = np.concatenate(list(layers.values()))
    mean = stacked.mean(axis=0)
    _, singular, axes = np.linalg.svd(stacked - mean, full_matrices=False)
    # One cluster has one component: the second is then zero.
    axes = np.concatenate([axes, np.zeros((2, axes.shape[1]))])[:2]
    # The signs of singular vectors are arbitrary, and may differ between machines.
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], 1) < 0, -1.0, 1.0)
    variance = np.concatenate([singular**2, [0.0, 0.0]])
    shares = variance[:2] / variance.sum() if variance.sum() > 0 else np.zeros(2)
    return {name: (p - mean) @ axes.T for name, p in layers.items()}, (float(shares[0]), float(shares[1]))


@styled
def figure_projection(probabilities: Mapping[str, ArrayLike], class_names: Sequence[str] | None) -> tuple[Figure, int]:
    """Draw the nodes at the principal components of their rows of P, in the color of their most probable cluster.

    The panel of the last layer is larger; its nodes are labeled as far as there is room.

    Args:
        probabilities: P of each layer, (nodes, clusters).
        class_names: Names of the nodes of the last layer, or None if they are not classes.

    Returns:
        The figure, and how many classes are labeled.
    """
    places, shares = project(probabilities)
    *others, last = places
    columns = min(3, max(1, len(others)))
    rows, side = -(-len(others) // columns), 74.0
    keys = _cluster_keys(np.asarray(probabilities[last]).shape[1])
    above = legend_height(keys, NARROW) + 4
    height = above + rows * (side + 20) + 16 + 214 + 26
    figure = canvas(NARROW, height)
    legend(figure, keys, top=2)
    width = (NARROW - 12 - 8 * (columns - 1)) / columns
    for index, layer in enumerate(others):
        row, column = divmod(index, columns)
        axes = panel(figure, (6 + column * (width + 8), above + 14 + row * (side + 20), width, side))
        _nodes(axes, layer, places[layer], np.asarray(probabilities[layer]), size=2.2)
    axes = panel(figure, (24, above + rows * (side + 20) + 14, NARROW - 30, 214))
    _nodes(axes, last, places[last], np.asarray(probabilities[last]), size=5)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)", labelpad=4, size=SMALL)
    axes.set_ylabel(f"second ({shares[1]:.0%})", labelpad=4, size=SMALL)
    names = [shorten(name, 90, SMALL) for name in class_names or ()]
    if not names:
        return figure, 0
    return figure, place_labels(axes, [(float(x), float(y)) for x, y in places[last]], names)


def _cluster_keys(clusters: int) -> list[Key]:
    keys = [Key(f"cluster {number}", cluster_color(number)) for number in range(min(clusters, len(CLUSTERS)))]
    return keys if clusters <= len(CLUSTERS) else [*keys[:-1], Key("further clusters (colors repeat)", CLUSTERS[-1])]


def _nodes(axes: Axes, layer: str, places: Array, p: Array, *, size: float) -> None:
    step = -(-len(places) // _MOST_NODES)  # rounded up; more than `_MOST_NODES` nodes are thinned out
    strongest = p.argmax(axis=1)
    bare(axes, frame=True)
    for cluster in range(p.shape[1]):
        members = places[strongest == cluster][::step]
        axes.plot(members[:, 0], members[:, 1], "o", ms=size, mec="none", mfc=cluster_color(cluster), alpha=0.75)
    axes.set_xlim(*padded(places[:, 0], share=0.1, least=0.02))
    axes.set_ylim(*padded(places[:, 1], share=0.1, least=0.02))
    title(axes, layer, note=count_of(len(places), "node"))


def extreme_classes(expected: ArrayLike, *, most: int = 3) -> tuple[list[int], list[int]]:
    """Return the classes with the fewest and those with the most expected clusters, at most half of all classes each.

    Args:
        expected: Sum over clusters of P of the class layer, (seeds, classes).
        most: Maximum number of classes at each end.
    """
    order = _fewest_first(np.asarray(expected, dtype=np.float64)).tolist()
    count = min(most, len(order) // 2)
    return order[:count], order[len(order) - count :]


def _fewest_first(values: Array) -> NDArray[np.int64]:
    return np.argsort(values.mean(axis=0), kind="stable")  # ties in the order of the classes


@styled
def figure_clusters_per_class(
    expected: ArrayLike, class_names: Sequence[str], samples: Mapping[int, Sequence[Image]] | None = None
) -> Figure:
    """Draw the expected number of clusters of each class, in increasing order, and its median and quartiles.

    Args:
        expected: Sum over clusters of P of the class layer, (seeds, classes).
        class_names: One per class.
        samples: Images of the classes that `extreme_classes` returns, drawn below the figure; by default, none.
    """
    values = np.asarray(expected, dtype=np.float64)
    order, names = _fewest_first(values), [clean(name) for name in class_names]
    below = _extremes(values, names, samples or {})
    draw = _classes_as_rows if len(order) <= _FEW_CLASSES else _classes_as_columns
    room = samples_height(below) + 10 if below else 0.0
    figure = draw(values[:, order], [names[index] for index in order], room)
    draw_samples(figure, below, top=float(figure.get_size_inches()[1]) * 72 - room + 6)
    return figure


def _extremes(values: Array, names: Sequence[str], samples: Mapping[int, Sequence[Image]]) -> list[SampleRow]:
    rows = []
    for heading, classes in zip(("fewest clusters", "most clusters"), extreme_classes(values), strict=True):
        shown = tuple(sample for label in classes for sample in _of_class(values, names, label, samples.get(label, ())))
        if shown:
            rows.append(SampleRow(heading, "", shown))
    return rows


def _of_class(values: Array, names: Sequence[str], label: int, images: Sequence[Image]) -> list[Sample]:
    """Return the images of a class; the first is labeled with its name and its expected number of clusters."""
    texts = [(names[label], f"{values[:, label].mean():.2f}"), *[("", "")] * len(images)]
    return [Sample(image, *text) for image, text in zip(images, texts, strict=False)]


def _classes_as_rows(values: Array, names: Sequence[str], below: float) -> Figure:
    figure = canvas(NARROW, 20 + 15 * len(names) + 32 + below)
    left = min(120.0, 10 + max(text_width(shorten(name, 110)) for name in names))
    axes = panel(figure, (left, 18, NARROW - left - 10, 15 * len(names)))
    means, places = values.mean(axis=0), np.arange(len(names))
    lower, median, upper = np.quantile(means, [0.25, 0.5, 0.75])
    axes.axvspan(lower, upper, color=MUTED, alpha=0.18, lw=0)
    axes.axvline(median, color=INK, lw=1.2)
    axes.hlines(places, values.min(axis=0), values.max(axis=0), color=SHOWN, lw=1.6, alpha=0.5)
    axes.plot(means, places, "o", ms=5, color=SHOWN)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(places, [shorten(name, left - 8) for name in names], color=INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("expected number of clusters", labelpad=2)
    title(axes, "", note=f"median {median:.2f}, quartiles {lower:.2f} and {upper:.2f}")
    return figure


def _classes_as_columns(values: Array, names: Sequence[str], below: float) -> Figure:
    short = max(map(len, names)) <= 2 and len(names) * 5.5 <= WIDE
    width = max(NARROW, min(WIDE, 42 + 6.6 * len(names))) if short else NARROW
    figure = canvas(width, 196 + below)
    axes = panel(figure, (32, 18, width - 38, 144))
    means, places = values.mean(axis=0), np.arange(len(names))
    lower, median, upper = np.quantile(means, [0.25, 0.5, 0.75])
    axes.axhspan(lower, upper, color=MUTED, alpha=0.18, lw=0)
    axes.axhline(median, color=INK, lw=1.2)
    axes.vlines(places, values.min(axis=0), values.max(axis=0), color=SHOWN, lw=1.2, alpha=0.45)
    axes.plot(places, means, "o", ms=3.4, mec="none", mfc=SHOWN)
    axes.set_xlim(-1, len(names))
    axes.set_ylim(*padded(values.ravel(), share=0.14, least=0.05))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("expected number of clusters", labelpad=2)
    axes.set_xticks(places if short else [], list(names) if short else [])
    axes.tick_params(axis="x", labelsize=7, length=0, pad=3, labelcolor=INK)
    axes.set_xlabel("classes, ordered by expected number of clusters", labelpad=2)
    title(axes, "", note=f"median {median:.2f}, quartiles {lower:.2f} and {upper:.2f}")
    if not short:
        _name_extremes(axes, means, names)
    return figure


def _name_extremes(axes: Axes, means: Array, names: Sequence[str]) -> None:
    chosen = [*range(4), *range(len(names) - 4, len(names))]  # there are more than `_FEW_CLASSES`
    place_labels(axes, [(float(i), float(means[i])) for i in chosen], [shorten(names[i], 90, SMALL) for i in chosen])


@styled
def figure_masks(probabilities: Mapping[str, ArrayLike], edges: Sequence[tuple[str, str]] | None = None) -> Figure:
    """Draw one panel per pair of layers: the probability of keeping each weight, with nodes sorted by cluster.

    Opacity is ``1 - prod_c (1 - P_target,c P_source,c)``. The strips show the most probable cluster of each node.

    Args:
        probabilities: P by layer, shape ``(nodes, clusters)``.
        edges: The pairs of a layer that is read and its reader, one or more; None for a chain of the layers.
    """
    layers = {name: _ordered(np.asarray(p, dtype=np.float64)) for name, p in probabilities.items()}
    chosen = list(pairwise(layers)) if edges is None else edges
    pairs = [((source, layers[source]), (target, layers[target])) for source, target in chosen]
    figure, panels = small_multiples(len(pairs), height=96, columns=3 if len(pairs) > 2 else 2, left=10, bottom=6)
    for axes, ((source, p), (target, q)) in zip(panels, pairs, strict=True):
        mask = _averaged(kept_probability(p, q))
        _raster(axes, heat_image(mask, top=1.0), extent=(0, 1, 0, 1))
        _strip(axes, p.argmax(axis=1), extent=(0, 1, 1.02, 1.06), across=True)
        _strip(axes, q.argmax(axis=1), extent=(-0.06, -0.02, 0, 1), across=False)
        axes.set_xlim(-0.06, 1)  # the mask fills [0, 1], the strips are left of it and above
        axes.set_ylim(0, 1.06)
        bare(axes)
        title(axes, f"{source} to {target}")
    return figure


def kept_probability(source: Array, target: Array) -> Array:
    """Return the probability that source and target share at least one cluster in a draw, (targets, sources)."""
    lost = np.ones((len(target), len(source)))
    # Clusters are drawn independently: the weight is lost if no cluster has both nodes.
    for cluster in range(source.shape[1]):
        lost *= 1 - np.outer(target[:, cluster], source[:, cluster])
    return 1 - lost


def _ordered(p: Array) -> Array:
    """Sort nodes by their most probable cluster, and within a cluster by its probability, largest first."""
    return p[np.lexsort((-p.max(axis=1), p.argmax(axis=1)))]


def _averaged(mask: Array) -> Array:
    """Reduce a mask to at most `_MOST_CELLS` rows and columns by averaging."""
    # Edges rise strictly, because there are no more cells than rows: `reduceat` does not sum an empty range to 0.
    for axis in (0, 1):
        edges = np.linspace(0, mask.shape[axis], min(mask.shape[axis], _MOST_CELLS) + 1).astype(int)
        sums = np.add.reduceat(mask, edges[:-1], axis=axis)
        mask = sums / np.expand_dims(np.diff(edges), 1 - axis)
    return mask


def _strip(axes: Axes, clusters: Array, *, extent: tuple[float, float, float, float], across: bool) -> None:
    # Nodes are sorted by cluster, so that one rectangle for each run of equal clusters is enough.
    starts = [0, *(np.flatnonzero(np.diff(clusters)) + 1).tolist(), len(clusters)]
    left, right, bottom, top = extent
    for start, end in pairwise(starts):
        low, high = start / len(clusters), end / len(clusters)
        color = cluster_color(int(clusters[start]))
        # Rows of an image go down, the axis goes up.
        box = (low, high, bottom, top) if across else (left, right, 1 - high, 1 - low)
        axes.fill_between([box[0], box[1]], box[2], box[3], color=color, lw=0)
