"""The figure of an architecture: layers as columns of groups, connected through the clusters that they share.

References:
    Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, figure 1c.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from nas_blockout.plots.style.canvas import NARROW, canvas, clean, panel, shorten, text_width
from nas_blockout.plots.style.theme import INK, MUTED, PAPER, SMALL, cluster_color, styled

# In points: width of a group, distance between groups, smallest and largest height of a group.
_BOX, _GAP, _LEAST, _MOST = 52.0, 5.0, 14.0, 32.0
_CLASSES, _PITCH = 104.0, 90.0  # room for names of classes, and from one layer to the next
_MOST_GROUPS = 16
_STRIPE = 4.0
_HEAD = 22.0


@dataclass(frozen=True, slots=True)
class _Box:
    clusters: tuple[int, ...]
    width: int
    classes: tuple[int, ...]
    height: float
    left: float = 0.0
    top: float = 0.0
    merged: int = 1
    constant: bool = False

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@styled
def figure_architecture(document: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw an architecture from its JSON form; groups with more nodes are taller.

    Each group shows its number of nodes and one stripe per cluster, in the color of the cluster. Lines lead from a
    group to a dot for each of its clusters, and from there to the groups of the next layer in that cluster: a group
    gets its inputs from all groups that lines connect it with. One without inputs has a dashed outline. If a layer has
    more than sixteen groups, the smallest are drawn as one, labeled with their nodes and their number ("40 in 7").
    """
    layers = [(clean(layer["name"]), _boxes(layer["groups"])) for layer in document["layers"]]
    tallest = max(_height(boxes) for _, boxes in layers)
    lines = [line for _, boxes in layers for box in boxes for line in _lines(box, class_names)]
    # The names of classes stand to the right of the last layer, which has to leave room for them.
    written = 10 + max((text_width(line, SMALL) for line in lines), default=0.0)
    gaps = len(layers) - 1
    pitch = max(_PITCH, (NARROW - _BOX - written - 8) / gaps) if gaps else 0.0
    width, height = max(NARROW, 8 + pitch * gaps + _BOX + written), tallest + _HEAD + 6
    figure = canvas(width, height)
    axes = panel(figure, (0, 0, width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    placed = [_place(boxes, 4 + pitch * index, height) for index, (_, boxes) in enumerate(layers)]
    for before, after in pairwise(placed):
        _join(axes, before, after, height)
    for index, ((name, _), boxes) in enumerate(zip(layers, placed, strict=True)):
        axes.text(4 + pitch * index, 11, shorten(name, max(_BOX, pitch - 6), SMALL), size=SMALL, color=MUTED)
        for box in boxes:
            _draw(axes, box, class_names)
    return figure


def _boxes(groups: Sequence[Mapping[str, Any]]) -> list[_Box]:
    """Return the groups of a layer with their heights, in the order of clusters; the smallest merged if too many."""
    groups_as_boxes = [
        _Box(
            tuple(g["clusters"]),
            int(g.get("width", len(g.get("classes") or ()))),
            tuple(g.get("classes") or ()),
            0,
            constant=bool(g.get("constant")),
        )
        for g in groups
    ]
    by_size = sorted(groups_as_boxes, key=lambda box: -box.width)
    kept, small = (
        (by_size, [])
        if len(groups_as_boxes) <= _MOST_GROUPS
        else (by_size[: _MOST_GROUPS - 1], by_size[_MOST_GROUPS - 1 :])
    )
    largest = by_size[0].width
    # The square root keeps small groups legible beside large ones.
    boxes = [replace(box, height=_LEAST + (_MOST - _LEAST) * (box.width / largest) ** 0.5) for box in kept]
    # By mean cluster: groups of the same clusters are then at a similar height in every layer, and lines cross less.
    boxes.sort(key=lambda box: (sum(box.clusters) / max(1, len(box.clusters)), box.clusters))
    if small:
        clusters = tuple(sorted({cluster for box in small for cluster in box.clusters}))
        classes = tuple(sorted(label for box in small for label in box.classes))
        boxes.append(_Box(clusters, sum(box.width for box in small), classes, _MOST, merged=len(small)))
    return boxes


def _height(boxes: Sequence[_Box]) -> float:
    return sum(box.height for box in boxes) + _GAP * (len(boxes) - 1)


def _place(boxes: Sequence[_Box], left: float, height: float) -> list[_Box]:
    top, placed = _HEAD + (height - _HEAD - 6 - _height(boxes)) / 2, []
    for box in boxes:
        placed.append(replace(box, left=left, top=top))
        top += box.height + _GAP
    return placed


def _join(axes: Axes, before: Sequence[_Box], after: Sequence[_Box], height: float) -> None:
    """Draw a dot for each cluster halfway between two layers, and the lines that meet there."""
    sources, targets = ({c for box in boxes for c in box.clusters} for boxes in (before, after))
    shared = sorted(sources & targets)
    start, end = before[0].left + _BOX, after[0].left
    for index, cluster in enumerate(shared):
        hub = ((start + end) / 2, _HEAD + (height - _HEAD) * (index + 0.5) / len(shared))
        lines = [_curve((start, box.middle), hub) for box in before if cluster in box.clusters]
        lines += [_curve(hub, (end, box.middle)) for box in after if cluster in box.clusters]
        color = cluster_color(cluster)
        # One path for all lines of a cluster: one element in the SVG instead of dozens.
        axes.add_artist(
            PathPatch(Path.make_compound_path(*lines), fill=False, edgecolor=color, lw=1.1, alpha=0.75, clip_on=False)
        )
        axes.plot(*hub, "o", ms=4.5, color=color)


def _curve(start: tuple[float, float], end: tuple[float, float]) -> Path:
    middle = (start[0] + end[0]) / 2
    return Path(
        [start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    )


def _draw(axes: Axes, box: _Box, class_names: Sequence[str]) -> None:
    # Many clusters share half of the box, or less if the text is longer, as that of merged groups is.
    stripe = min(_STRIPE, (0.5 if box.merged == 1 else 0.12) * _BOX / max(1, len(box.clusters)))
    start, outline = box.left + stripe * len(box.clusters), "--" if box.constant else "-"
    _rectangle(axes, (box.left, box.top, _BOX, box.height), facecolor=PAPER, edgecolor=MUTED, lw=0.7, ls=outline)
    for index, cluster in enumerate(box.clusters):
        place = (box.left + index * stripe, box.top, stripe, box.height)
        _rectangle(axes, place, facecolor=cluster_color(cluster), lw=0)
    text = f"{box.width}" if box.merged == 1 else f"{box.width} in {box.merged}"
    room = box.left + _BOX - start
    axes.text(start + room / 2, box.middle, shorten(text, room, SMALL), size=SMALL, ha="center", va="center")
    lines = _lines(box, class_names)
    for number, line in enumerate(lines):
        y = box.middle + (number - (len(lines) - 1) / 2) * 9.5
        axes.text(box.left + _BOX + 5, y, line, size=SMALL, va="center", color=INK)


def _lines(box: _Box, class_names: Sequence[str]) -> list[str]:
    return _wrapped([clean(class_names[label]) for label in box.classes], lines=2 if box.height >= 21 else 1)


def _rectangle(axes: Axes, box: tuple[float, float, float, float], **style: Any) -> None:
    axes.add_artist(Rectangle(box[:2], box[2], box[3], clip_on=False, **style))


def _wrapped(names: Sequence[str], *, lines: int) -> list[str]:
    """Fill at most `lines` lines with names; the last one ends with how many are left out ("+3")."""
    room, row, shown = _CLASSES - 10, "", 0
    rows: list[str] = []
    for name in names:
        name = shorten(name, room - 24, SMALL)
        last = len(rows) == lines - 1
        # A name may take the last place only if the count of those left out still fits behind it.
        tail = f" +{len(names) - shown}" if last and shown + 1 < len(names) else ""
        candidate = f"{row}  {name}" if row else name
        if text_width(candidate + tail, SMALL) > room:
            if last:
                break
            rows.append(row)
            candidate = name
        row, shown = candidate, shown + 1
    rest = len(names) - shown
    return [line for line in (*rows, f"{row} +{rest}" if rest else row) if line]
