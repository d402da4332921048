"""Figures of networks whose blocks are skipped: how many blocks images keep, which images, and along which paths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from nas_blockout.plots.samples import Image
from nas_blockout.plots.style.canvas import (
    NARROW,
    WIDE,
    bare,
    canvas,
    heat_image,
    padded,
    panel,
    percent_axis,
    shorten,
    write,
)
from nas_blockout.plots.style.theme import FONT, INK, MUTED, ROLES, SMALL, styled

IMAGES_A_PATH = 8
_THUMBNAIL, _STRIP = 34.0, 190.0


@dataclass(frozen=True, slots=True)
class Group:
    """Images that have something in common, and the blocks that they keep.

    Args:
        name: What they have in common.
        mean: Blocks, mean over the images.
        error: Standard error of the mean.
        images: Number of images.
    """

    name: str
    mean: float
    error: float
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class CommonPath:
    """A path that many images take.

    Args:
        blocks: Whether each block is kept, in the order of the network.
        share: Share of the images that take it.
        images: Some of them.
    """

    blocks: tuple[bool, ...]
    share: float
    images: tuple[Image, ...]


@styled
def figure_kept_blocks(histograms: Sequence[Sequence[float]], kept: Sequence[Sequence[float]]) -> Figure:
    """Draw how many blocks images keep, and which blocks.

    Args:
        histograms: By seed, the share of images that keep 0, 1, 2, ... blocks.
        kept: By seed, the share of images that keep each block, in the order of the network.
    """
    figure = canvas(NARROW, 270)
    style = ROLES["learned"]
    data = (("blocks kept", histograms, 0), ("block, from the first to the last", kept, 1))
    for number, (label, rows, first) in enumerate(data):
        axes = panel(figure, (42, 8 + 132 * number, NARROW - 50, 88))
        values = np.asarray(rows, dtype=float)
        places = np.arange(first, first + values.shape[1])
        axes.bar(places, values.mean(axis=0), width=0.8, color=style.color, alpha=0.45, linewidth=0)
        for row in values:
            axes.plot(places, row, "o", ms=2.8, color=style.color, mec="none")
        axes.set_xlim(first - 0.6, first + values.shape[1] - 0.4)
        axes.set_ylim(0, 1.04)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of the automatic locator
        percent_axis(axes)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(label, labelpad=2)
        axes.set_ylabel("images, %", labelpad=2)
    return figure


@styled
def figure_blocks_by_group(difficulty: Sequence[Group], classes: Sequence[Group]) -> Figure:
    """Draw the mean number of blocks by difficulty of the images, and by class.

    Args:
        difficulty: From the easiest images to the hardest.
        classes: In any order; they are drawn from the fewest blocks to the most.
    """
    row, names = 15.0, 92.0
    classes = sorted(classes, key=lambda group: group.mean)
    figure = canvas(NARROW, 152 + row * len(classes) + 40)
    limits = padded([end for group in difficulty for end in (group.mean - group.error, group.mean + group.error)])
    axes = panel(figure, (42, 8, NARROW - 50, 88))
    style = ROLES["learned"]
    places = range(len(difficulty))
    axes.errorbar(
        places,
        [group.mean for group in difficulty],
        yerr=[group.error for group in difficulty],
        fmt="o-",
        ms=4,
        lw=1.2,
        color=style.color,
    )
    axes.set_ylim(*limits)
    axes.set_xlim(-0.5, len(difficulty) - 0.5)
    axes.set_xticks(list(places), [f"{group.name}\n{group.images:,}" for group in difficulty])
    axes.set_xlabel("models of the other arms that are wrong, %; images", labelpad=2)
    axes.set_ylabel("blocks", labelpad=2)
    below = panel(figure, (names, 150, NARROW - names - 12, row * len(classes)))
    below.errorbar(
        [group.mean for group in classes],
        range(len(classes)),
        xerr=[group.error for group in classes],
        fmt="o",
        ms=4,
        lw=1.2,
        color=style.color,
    )
    below.set_yticks(range(len(classes)), [shorten(group.name, names - 8) for group in classes], color=INK)
    below.set_ylim(len(classes) - 0.5, -0.5)
    below.set_xlabel("blocks, mean over the images of the class", labelpad=2)
    return figure


@styled
def figure_common_paths(paths: Sequence[CommonPath]) -> Figure:
    """Draw the most common paths as strips of blocks, each with images that take it."""
    height = _THUMBNAIL + 18
    figure = canvas(WIDE, height * len(paths) + 6)
    for number, path in enumerate(paths):
        top = 4 + height * number
        text = f"{100 * path.share:.3g}% of the images, {sum(path.blocks)} of {len(path.blocks)} blocks"
        write(figure, (4, top + 10), text, size=FONT, color=INK)
        axes = panel(figure, (4, top + 16, _STRIP, _THUMBNAIL - 8))
        axes.imshow(heat_image(np.array([path.blocks], dtype=float), top=1.0), aspect="auto", interpolation="none")
        bare(axes, frame=True)
        for edge in range(1, len(path.blocks)):
            axes.axvline(edge - 0.5, color=MUTED, lw=0.5)
        for column, image in enumerate(path.images[:IMAGES_A_PATH]):
            place = (_STRIP + 24 + column * (_THUMBNAIL + 8), top + 4, _THUMBNAIL, _THUMBNAIL)
            thumbnail = panel(figure, place)
            gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.ndim == 2 else {}
            thumbnail.imshow(image, interpolation="none", **gray)  # type: ignore[arg-type]  # as in `samples`
            bare(thumbnail)
    if not paths:
        write(figure, (4, 5), "no image", size=SMALL, color=MUTED)
    return figure
