"""The figure of an architecture: layers as columns of groups, connected through the clusters that they share.

References:
    Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, figure 1c.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, PathPatch, Rectangle
from matplotlib.path import Path

from nas_blockout.plots.style.canvas import NARROW, canvas, clean, panel, shorten, text_width
from nas_blockout.plots.style.theme import INK, MUTED, PAPER, SMALL, cluster_color, styled
from nas_blockout.structure.folding import Clusters, Column, Drawing, DrawnGroup, drawing

# In points: width of a group, distance between groups, smallest and largest height of a group.
_BOX, _GAP, _LEAST, _MOST = 52.0, 5.0, 14.0, 32.0
_CLASSES, _PITCH = 104.0, 90.0  # room for names of classes, and from one layer to the next
_MOST_GROUPS = 16
_STRIPE = 4.0
_HEAD = 22.0
_ARC, _MOST_ARC = 9.0, 54.0  # how much deeper an arc is for each column that it passes, and the deepest one


@dataclass(frozen=True, slots=True)
class _Box:
    """A group as it is drawn: `clusters` are those with a stripe, `all` those that connect it."""

    clusters: Clusters
    width: int
    classes: tuple[int, ...]
    height: float
    left: float = 0.0
    top: float = 0.0
    merged: int = 1
    constant: bool = False
    all: Clusters = ()

    def joins(self, linked: Collection[Clusters]) -> bool:
        """Whether it is one of the groups with these clusters, or has some of them merged in it."""
        return self.all in linked or self.merged > 1

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@styled
def figure_architecture(document: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """Draw an architecture from its JSON form; groups with more nodes are taller.

    Each group shows its number of nodes and one stripe per cluster, in the color of the cluster. Lines lead from a
    group to a dot for each of its clusters, and from there to the groups of the next column in that cluster: a group
    gets its inputs from all groups that lines connect it with. One without inputs has a dashed outline. Gray lines are
    connections without masks. An arc below leads to a column that reads one further away, or a later one; with two
    arrows, each reads the other. If a column has more than sixteen groups, the smallest are
    drawn as one, labeled with their nodes and their number ("40 in 7").

    A column is a layer. The layers of a large graph are folded into stages, whose number of layers is in parentheses.
    """
    drawn = drawing(document)
    columns = [_boxes(column.groups, drawn.branches) for column in drawn.columns]
    tallest, arcs = max(map(_height, columns)), _arcs(drawn)
    lines = [line for boxes in columns for box in boxes for line in _lines(box, class_names)]
    # The names of classes stand to the right of the last column, which has to leave room for them.
    written = 10 + max((text_width(line, SMALL) for line in lines), default=0.0)
    gaps = len(columns) - 1
    pitch = max(_PITCH, (NARROW - _BOX - written - 8) / gaps) if gaps else 0.0
    width, height = max(NARROW, 8 + pitch * gaps + _BOX + written), tallest + _HEAD + 6
    below = max((_depth(arc) for arc in arcs), default=0.0)
    figure = canvas(width, height + below)
    axes = panel(figure, (0, 0, width, height + below))
    axes.set_xlim(0, width)
    axes.set_ylim(height + below, 0)
    axes.set_axis_off()
    placed = [_place(boxes, 4 + pitch * index, height) for index, boxes in enumerate(columns)]
    for index, (before, after) in enumerate(pairwise(placed)):
        sources, readers = _linked(drawn, index)
        first, second = ([box for box in before if box.joins(sources)], [box for box in after if box.joins(readers)])
        _join(axes, (first, second), drawn.branches, height)
    for arc in arcs:
        _arc(axes, placed, arc)
    for index, (column, boxes) in enumerate(zip(drawn.columns, placed, strict=True)):
        title = shorten(_title(column), max(_BOX, pitch - 6), SMALL)
        axes.text(4 + pitch * index, 11, title, size=SMALL, color=MUTED)
        for box in boxes:
            _draw(axes, box, class_names)
    return figure


def _title(column: Column) -> str:
    return clean(column.name) + (f" ({len(column.layers)})" if len(column.layers) > 1 else "")


def _linked(drawn: Drawing, index: int) -> tuple[set[Clusters], set[Clusters]]:
    """Return the clusters of the groups of a column that the next one reads, and of those that read them."""
    links = [(source, reader) for source, reader in drawn.links if (source[0], reader[0]) == (index, index + 1)]
    sides = zip(*links, strict=True) if links else ((), ())
    first, second = ({drawn.columns[number].groups[group].clusters for number, group in side} for side in sides)
    return first, second


def _arcs(drawn: Drawing) -> list[tuple[int, int, str]]:
    """Return the pairs of columns that are connected otherwise than from one to the next, with the arrow's style."""
    edges = [(source, reader) for source, reader in drawn.edges if reader != source + 1]
    both = {(source, reader) for source, reader in edges if (reader, source) in edges}
    return [
        (source, reader, "<|-|>" if (source, reader) in both else "-|>")
        for source, reader in edges
        if (source, reader) not in both or source < reader
    ]


def _depth(arc: tuple[int, int, str]) -> float:
    return min(_MOST_ARC, 8 + _ARC * abs(arc[1] - arc[0]))


def _arc(axes: Axes, placed: Sequence[Sequence[_Box]], arc: tuple[int, int, str]) -> None:
    """Draw an arrow below the columns from one that is read to its reader."""
    source, reader, style = arc
    bottoms = [max(box.top + box.height for box in boxes) for boxes in placed]
    shift = 8 if reader > source else -8
    start, end = placed[source][0].left + _BOX / 2 + shift, placed[reader][0].left + _BOX / 2 - shift
    low = max(bottoms[min(source, reader) : max(source, reader) + 1])
    control = low + _depth(arc) / 0.75  # a cubic curve reaches three quarters of the way to its control points
    path = Path(
        [(start, bottoms[source] + 2), (start, control), (end, control), (end, bottoms[reader] + 2)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    axes.add_artist(FancyArrowPatch(path=path, arrowstyle=style, mutation_scale=6, color=MUTED, lw=0.8, clip_on=False))


def _boxes(groups: Sequence[DrawnGroup], branches: Collection[int]) -> list[_Box]:
    """Return the groups of a column with their heights, in the order of clusters; the smallest merged if too many."""
    by_size = sorted(
        (
            _Box(tuple(sorted({*g.clusters} & {*branches})), g.nodes, g.classes, 0, constant=g.constant, all=g.clusters)
            for g in groups
        ),
        key=lambda box: -box.width,
    )
    kept, small = (
        (by_size, []) if len(by_size) <= _MOST_GROUPS else (by_size[: _MOST_GROUPS - 1], by_size[_MOST_GROUPS - 1 :])
    )
    largest = by_size[0].width
    # The square root keeps small groups legible beside large ones.
    boxes = [replace(box, height=_LEAST + (_MOST - _LEAST) * (box.width / largest) ** 0.5) for box in kept]
    # By mean cluster: groups of the same clusters are then at a similar height in every layer, and lines cross less.
    boxes.sort(key=lambda box: (sum(box.clusters) / max(1, len(box.clusters)), box.clusters))
    if small:
        clusters = tuple(sorted({cluster for box in small for cluster in box.clusters}))
        every = tuple(sorted({cluster for box in small for cluster in box.all}))
        classes = tuple(sorted(label for box in small for label in box.classes))
        boxes.append(_Box(clusters, sum(box.width for box in small), classes, _MOST, merged=len(small), all=every))
    return boxes


def _height(boxes: Sequence[_Box]) -> float:
    return sum(box.height for box in boxes) + _GAP * (len(boxes) - 1)


def _place(boxes: Sequence[_Box], left: float, height: float) -> list[_Box]:
    top, placed = _HEAD + (height - _HEAD - 6 - _height(boxes)) / 2, []
    for box in boxes:
        placed.append(replace(box, left=left, top=top))
        top += box.height + _GAP
    return placed


def _join(axes: Axes, sides: tuple[Sequence[_Box], Sequence[_Box]], branches: Collection[int], height: float) -> None:
    """Draw a dot for each cluster halfway between two columns, and the lines that meet there."""
    before, after = sides
    sources, targets = ({c for box in boxes for c in box.all} for boxes in sides)
    shared = sorted(sources & targets)
    for index, cluster in enumerate(shared):
        start, end = before[0].left + _BOX, after[0].left
        hub = ((start + end) / 2, _HEAD + (height - _HEAD) * (index + 0.5) / len(shared))
        lines = [_curve((start, box.middle), hub) for box in before if cluster in box.all]
        lines += [_curve(hub, (end, box.middle)) for box in after if cluster in box.all]
        color = cluster_color(cluster) if cluster in branches else MUTED
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
