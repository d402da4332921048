"""Labels beside points that overlap neither each other nor the points."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from nas_blockout.plots.canvas import text_width
from nas_blockout.plots.theme import INK, MUTED, SMALL

Point = tuple[float, float]
Box = tuple[float, float, float, float]
_HEIGHT, _RING = 9.0, 3.5
_DISTANCES = (6.0, 13.0, 22.0, 34.0, 48.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def place_labels(
    axes: Axes,
    points: Sequence[Point],
    texts: Sequence[str],
    *,
    lines: Sequence[tuple[Point, Point]] = (),
    required: bool = False,
) -> int:
    """Write each text beside its point where there is room, with a thin line if it had to move away.

    Limits and scales of the axes must be final.

    Args:
        axes: Where to write.
        points: In data coordinates.
        texts: One a point, measured in the small size.
        lines: Upright or level lines that texts keep clear of, by their ends in data coordinates.
        required: Whether a text that finds no room is written all the same, beside its point; else it is left out.

    Returns:
        How many texts were written.
    """
    scale = 72 / axes.figure.dpi

    def place(point: Point) -> Point:
        x, y = axes.transData.transform(point)
        return float(x) * scale, float(y) * scale

    frame = axes.get_window_extent()
    room = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    places = [place(point) for point in points]
    taken = [_around(spot, spot, _RING) for spot in places] + [_around(place(a), place(b), 1.5) for a, b in lines]
    written = 0
    for spot, text, point in zip(places, texts, points, strict=True):
        box = _free_box(spot, text, taken, room) or (_box(spot, text, (1, 0), _DISTANCES[0]) if required else None)
        if box is not None:
            taken.append(box)
            _write(axes, point, text, ((box[0] + box[2]) / 2 - spot[0], (box[1] + box[3]) / 2 - spot[1]))
            written += 1
    return written


def _write(axes: Axes, point: Point, text: str, offset: Point) -> None:
    moved = abs(offset[1]) > 20 or abs(offset[0]) > 20 + text_width(text, SMALL) / 2
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
        arrowprops=line if moved else None,
        annotation_clip=False,
    )


def _free_box(spot: Point, text: str, taken: Sequence[Box], room: Box) -> Box | None:
    for box in _candidates(spot, text):
        inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _candidates(spot: Point, text: str) -> Iterator[Box]:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            yield _box(spot, text, direction, distance)


def _box(spot: Point, text: str, direction: tuple[int, int], distance: float) -> Box:
    width = text_width(text, SMALL)
    reach = distance * (0.75 if all(direction) else 1.0)
    x = spot[0] + direction[0] * (reach + width / 2)
    y = spot[1] + direction[1] * (reach + _HEIGHT / 2)
    return x - width / 2, y - _HEIGHT / 2, x + width / 2, y + _HEIGHT / 2


def _around(a: Point, b: Point, margin: float) -> Box:
    return min(a[0], b[0]) - margin, min(a[1], b[1]) - margin, max(a[0], b[0]) + margin, max(a[1], b[1]) + margin


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
