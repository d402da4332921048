"""Labels beside points that overlap neither each other nor the points."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes

from nas_blockout.plots.theme import INK, MUTED, SMALL, text_width

Box = tuple[float, float, float, float]
_HEIGHT = 9.0
_DISTANCES = (6.0, 13.0, 22.0, 34.0, 48.0)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    required: bool = False,
    ring: float = 3.5,
) -> int:
    """Write each text beside its point where there is room, with a thin line if it had to move away.

    Limits and scales of the axes must be final.

    Args:
        axes: Where to write.
        points: In data coordinates.
        texts: One a point, measured in the small size.
        required: Whether a text that finds no room is written all the same, beside its point; else it is left out.
        ring: Radius in points that the marks themselves take.

    Returns:
        How many texts were written.
    """
    scale = 72 / axes.figure.dpi
    pixels = (axes.transData.transform(point) for point in points)
    places = [(float(x) * scale, float(y) * scale) for x, y in pixels]
    frame = axes.get_window_extent()
    room = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    taken: list[Box] = [(x - ring, y - ring, x + ring, y + ring) for x, y in places]
    written = 0
    for (x, y), text, point in zip(places, texts, points, strict=True):
        spot = _free_spot((x, y), text, taken, room)
        if spot is None and not required:
            continue
        box, distance = spot or (_box((x, y), text, (1, 0), _DISTANCES[0]), 0.0)
        taken.append(box)
        centre = ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            text, point, centre, textcoords="offset points", ha="center", va="center", size=SMALL, color=INK,
            arrowprops=line if distance > _DISTANCES[1] else None, annotation_clip=False,
        )  # fmt: skip
        written += 1
    return written


def _free_spot(place: tuple[float, float], text: str, taken: Sequence[Box], room: Box) -> tuple[Box, float] | None:
    for box, distance in _candidates(place, text):
        inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
        if inside and not any(_overlap(box, other) for other in taken):
            return box, distance
    return None


def _candidates(place: tuple[float, float], text: str) -> Iterator[tuple[Box, float]]:
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            yield _box(place, text, direction, distance), distance


def _box(place: tuple[float, float], text: str, direction: tuple[int, int], distance: float) -> Box:
    width = text_width(text, SMALL)
    reach = distance * (0.75 if all(direction) else 1.0)
    x = place[0] + direction[0] * (reach + width / 2)
    y = place[1] + direction[1] * (reach + _HEIGHT / 2)
    return x - width / 2, y - _HEIGHT / 2, x + width / 2, y + _HEIGHT / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
