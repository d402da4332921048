"""A figure of an architecture: its layers as columns of groups, joined where a group reads another.

References:
    Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, figure 1c.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from nas_blockout.plots.theme import (
    INK,
    MUTED,
    NARROW,
    PAPER,
    SMALL,
    canvas,
    clean,
    cluster_colour,
    panel,
    shorten,
    styled,
    text_width,
)

_BOX, _GAP, _LEAST, _MOST = 52.0, 6.0, 15.0, 34.0
_CLASSES = 104.0
_MOST_GROUPS = 16
_STRIPE = 4.0


@dataclass(frozen=True, slots=True)
class _Box:
    clusters: tuple[int, ...]
    width: int
    classes: tuple[int, ...] | None
    height: float
    left: float = 0.0
    top: float = 0.0
    merged: int = 1


@styled
def figure_architecture(document: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw an architecture from its JSON form; the height of a group grows with its nodes.

    A group bears its number of nodes and a stripe in the colour of each of its clusters. Lines join groups that share
    a cluster, in its colour if it is only one. Beyond sixteen groups in a layer the smallest are drawn as one.
    """
    layers = [(clean(layer["name"]), _boxes(layer["groups"])) for layer in document["layers"]]
    tallest = max(sum(box.height for box in boxes) + _GAP * (len(boxes) - 1) for _, boxes in layers)
    room = NARROW - _BOX - _CLASSES - 12
    pitch = max(74.0, room / max(len(layers) - 1, 1)) if len(layers) > 1 else 0.0
    width, height = 8 + pitch * (len(layers) - 1) + _BOX + _CLASSES, tallest + 34
    width = max(width, NARROW)
    figure = canvas(width, height)
    axes = panel(figure, (0, 0, width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    placed = [_place(boxes, 4 + pitch * index, height) for index, (_, boxes) in enumerate(layers)]
    for before, after in pairwise(placed):
        _edges(axes, before, after)
    for index, ((name, _), boxes) in enumerate(zip(layers, placed, strict=True)):
        axes.text(4 + pitch * index, 11, shorten(name, max(_BOX, pitch - 6), SMALL), size=SMALL, color=MUTED)
        for box in boxes:
            _draw(axes, box, class_names)
    return figure


def _boxes(groups: Sequence[Mapping[str, Any]]) -> list[_Box]:
    """Return a layer's groups with their heights, those with fewer clusters first; too many of them are merged."""
    found = [
        (tuple(g["clusters"]), int(g.get("width", len(g.get("classes") or ()))), tuple(g.get("classes") or ()) or None)
        for g in groups
    ]
    largest = max(width for _, width, _ in found)
    by_size = sorted(found, key=lambda group: -group[1])
    kept, small = (by_size, []) if len(found) <= _MOST_GROUPS else (by_size[:15], by_size[15:])
    boxes = [
        _Box(clusters, width, classes, _LEAST + (_MOST - _LEAST) * (width / largest) ** 0.5)
        for clusters, width, classes in sorted(kept, key=lambda group: (len(group[0]), group[0]))
    ]
    if small:
        clusters = tuple(sorted({cluster for group in small for cluster in group[0]}))
        classes = tuple(sorted(label for group in small for label in group[2] or ())) or None
        boxes.append(_Box(clusters, sum(group[1] for group in small), classes, _MOST, merged=len(small)))
    return boxes


def _place(boxes: Sequence[_Box], left: float, height: float) -> list[_Box]:
    total = sum(box.height for box in boxes) + _GAP * (len(boxes) - 1)
    top, placed = 22 + (height - 28 - total) / 2, []
    for box in boxes:
        placed.append(_Box(box.clusters, box.width, box.classes, box.height, left, top, box.merged))
        top += box.height + _GAP
    return placed


def _edges(axes: Axes, before: Sequence[_Box], after: Sequence[_Box]) -> None:
    for source in before:
        for target in after:
            shared = set(source.clusters) & set(target.clusters)
            if not shared:
                continue
            start = (source.left + _BOX, source.top + source.height / 2)
            end = (target.left, target.top + target.height / 2)
            middle = (start[0] + end[0]) / 2
            path = Path(
                [start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
            )
            colour = cluster_colour(shared.pop()) if len(shared) == 1 else MUTED
            axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, lw=1.2, alpha=0.7))


def _draw(axes: Axes, box: _Box, class_names: Sequence[str]) -> None:
    axes.add_patch(Rectangle((box.left, box.top), _BOX, box.height, facecolor=PAPER, edgecolor=MUTED, lw=0.7))
    stripe = min(_STRIPE, 0.5 * _BOX / len(box.clusters))
    for index, cluster in enumerate(box.clusters):
        axes.add_patch(
            Rectangle((box.left + index * stripe, box.top), stripe, box.height, facecolor=cluster_colour(cluster), lw=0)
        )
    start = box.left + stripe * len(box.clusters)
    text = f"{box.width}" if box.merged == 1 else f"{box.width} in {box.merged}"
    room = box.left + _BOX - start
    axes.text(
        start + room / 2, box.top + box.height / 2, shorten(text, room, SMALL), size=SMALL, ha="center", va="center"
    )
    if box.classes is not None:
        lines = _wrapped([clean(class_names[label]) for label in box.classes], lines=2 if box.height >= 22 else 1)
        for number, line in enumerate(lines):
            y = box.top + box.height / 2 + (number - (len(lines) - 1) / 2) * 9.5
            axes.text(box.left + _BOX + 5, y, line, size=SMALL, va="center", color=INK)


def _wrapped(names: Sequence[str], *, lines: int) -> list[str]:
    """Fill at most `lines` lines with names, the last ending in how many are not named."""
    room, row, shown = _CLASSES - 10, "", 0
    rows: list[str] = []
    for name in names:
        name = shorten(name, room - 24, SMALL)
        last = len(rows) == lines - 1
        tail = f" +{len(names) - shown}" if last and shown + 1 < len(names) else ""
        candidate = f"{row}  {name}" if row else name
        if text_width(candidate + tail, SMALL) > room:
            if last:
                break
            rows.append(row)
            candidate = name
        row, shown = candidate, shown + 1
    rest = len(names) - shown
    return [*rows, f"{row} +{rest}" if rest else row]
