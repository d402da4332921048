"""Placement of text labels beside points, without overlaps."""

from collections.abc import Iterator, Sequence
from math import hypot, inf

from matplotlib.axes import Axes

from nas_blockout.plots.style.canvas import text_width
from nas_blockout.plots.style.theme import INK, MUTED, SMALL

Point = tuple[float, float]
Box = tuple[float, float, float, float]
# In points: height of a text, free ring around a point; and boxes that stand for a leader line.
_HEIGHT, _RING, _BEADS = 9.0, 3.5, 16
# Tried in this order: near before far, beside before above and below.
_DISTANCES = (6.0, 13.0, 22.0, 34.0, 48.0, 64.0, 84.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def place_labels(
    axes: Axes,
    points: Sequence[Point],
    texts: Sequence[str],
    *,
    lines: Sequence[tuple[Point, Point]] = (),
    required: bool = False,
) -> int:
    """Write each text beside its point if there is room, with a thin leader line if it had to move away.

    The limits and scales of the axes must be final.

    Args:
        axes: Axes to write into.
        points: Points in data coordinates.
        texts: One text per point, written in the small font size.
        lines: Short or axis-parallel segments for texts to avoid, by their ends in data coordinates.
        required: Whether a text without room is written anyway, where it overlaps least; otherwise it is left out.

    Returns:
        The number of texts written.
    """
    scale = 72 / axes.figure.dpi

    def place(point: Point) -> Point:
        x, y = axes.transData.transform(point)
        return float(x) * scale, float(y) * scale

    # Greedy, in the order of the points: what is written is in the way of what follows, and is not moved again.
    frame = axes.get_window_extent()
    room = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    places = [place(point) for point in points]
    taken = [_around(spot, spot, _RING) for spot in places] + [_around(place(a), place(b), 1.5) for a, b in lines]
    written = 0
    for spot, text, point in zip(places, texts, points, strict=True):
        others = [other for other in places if other != spot]
        inside = (box for box in _candidates(spot, text) if _inside(box, room))
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        # A text must not seem to belong to a neighbor: if it cannot be nearest to its own point, a line shows it.
        clear = next((box for box in free if _lead(box, others, spot) >= 0), None)
        best = clear or max(free, key=lambda box: _lead(box, others, spot), default=None)
        box = best or (_least_bad_box(spot, text, taken, room) if required else None)
        if box is not None:
            offset = (box[0] + box[2]) / 2 - spot[0], (box[1] + box[3]) / 2 - spot[1]
            far = abs(offset[1]) > 20 or abs(offset[0]) > 20 + text_width(text, SMALL) / 2
            joined = far or _lead(box, others, spot) < 0
            taken += [box, *(_thread(spot, offset) if joined else ())]
            _write(axes, point, text, offset, joined=joined)
            written += 1
    return written


def _lead(box: Box, others: Sequence[Point], own: Point) -> float:
    """Return how much nearer a text is to its own point than to any other; negative if another point is nearer."""
    return min((_distance(box, other) for other in others), default=inf) - _distance(box, own)


def _thread(spot: Point, offset: Point) -> Iterator[Box]:
    """Yield a chain of small boxes along the leader line from a point to its text."""
    for step in range(1, _BEADS):
        bead = spot[0] + offset[0] * step / _BEADS, spot[1] + offset[1] * step / _BEADS
        yield _around(bead, bead, 1.0)


def _distance(box: Box, point: Point) -> float:
    return hypot(*(max(low - at, 0.0, at - high) for low, high, at in zip(box[:2], box[2:], point, strict=True)))


def _write(axes: Axes, point: Point, text: str, offset: Point, *, joined: bool) -> None:
    line = {"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        ha="center",
        va="center",
        size=SMALL,
        color=INK,
        arrowprops=line if joined else None,
        annotation_clip=False,
    )


def _least_bad_box(spot: Point, text: str, taken: Sequence[Box], room: Box) -> Box:
    """Return the position with the fewest overlaps, inside the panel if possible."""
    places = list(_candidates(spot, text))
    inside = [box for box in places if _inside(box, room)]
    return min(inside or places, key=lambda box: sum(_overlap(box, other) for other in taken))


def _inside(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]


def _candidates(spot: Point, text: str) -> Iterator[Box]:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            yield _box(spot, text, direction, distance)


def _box(spot: Point, text: str, direction: tuple[int, int], distance: float) -> Box:
    width = text_width(text, SMALL)
    reach = distance * (0.75 if all(direction) else 1.0)  # diagonal: about as far, measured along the line
    x = spot[0] + direction[0] * (reach + width / 2)
    y = spot[1] + direction[1] * (reach + _HEIGHT / 2)
    return x - width / 2, y - _HEIGHT / 2, x + width / 2, y + _HEIGHT / 2


def _around(a: Point, b: Point, margin: float) -> Box:
    return min(a[0], b[0]) - margin, min(a[1], b[1]) - margin, max(a[0], b[0]) + margin, max(a[1], b[1]) + margin


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
