"""The grid of a space: all combinations of its parameters, enumerated by walking the define-by-run function."""

from collections.abc import Mapping, Sequence
from math import prod

from search_spaces.trial import Choice, Context, Space

MOST_POINTS = 1_000
Point = Mapping[str, str | int | float | bool]


def grid(space: Space, context: Context, *, points: int) -> tuple[Point, ...]:
    """Return all points of the grid of a space, the last parameter varying fastest.

    A categorical parameter takes all its choices. A number takes `points` values, evenly spaced (on a logarithmic scale
    if it has one) and including both ends, or the middle if `points` is 1; an integer at most as many as its range has.
    A parameter that exists only under some combinations varies only there.

    Args:
        space: Called once per point.
        context: What the space starts from.
        points: Values per numeric parameter, 1 or more.

    Raises:
        ValueError: The grid has more than `MOST_POINTS` points.
    """
    # Which parameters there are is only known by running the space. So it is run as an odometer: the path holds the
    # position of every choice of the last run, the last one is advanced, and parameters after it start at their first.
    path: list[int] = []
    grid_points: list[Point] = []
    while True:
        walk = _Walk(path, points)
        space(walk, context)
        if not grid_points and prod(map(len, walk.choices.values())) > MOST_POINTS:  # before a million runs are made
            raise _too_large(walk)
        grid_points.append(walk.parameters)
        if len(grid_points) > MOST_POINTS:
            raise _too_large(walk)
        path = _next(walk)
        if not path:
            return tuple(grid_points)


class _Walk:
    """A trial that answers with the choices at the positions of a path, and with the first choice after its end."""

    def __init__(self, path: Sequence[int], points: int) -> None:
        self._path = path
        self._points = points
        self.choices: dict[str, Sequence[str | int | float | bool]] = {}
        self.parameters: dict[str, str | int | float | bool] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number of the grid."""
        values = _spaced(low, high, self._points, log=log)
        return self._chosen(name, values)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a whole number of the grid."""
        if high - low < self._points:
            return self._chosen(name, range(low, high + 1))
        return self._chosen(name, sorted({round(value) for value in _spaced(low, high, self._points, log=False)}))

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""
        return self._chosen(name, choices)

    def _chosen(self, name: str, choices: Sequence[Choice]) -> Choice:
        if name not in self.choices:
            place = len(self.choices)
            self.choices[name] = choices
            self.parameters[name] = choices[self._path[place] if place < len(self._path) else 0]
        return self.parameters[name]  # type: ignore[return-value]  # it is among the choices


def _next(walk: _Walk) -> list[int]:
    """Return the path after the one that was walked; an empty one after the last."""
    places = [choices.index(walk.parameters[name]) for name, choices in walk.choices.items()]
    counts = [len(choices) for choices in walk.choices.values()]
    while places and places[-1] + 1 == counts[-1]:
        places.pop()
        counts.pop()
    return [*places[:-1], places[-1] + 1] if places else []


def _spaced(low: float, high: float, points: int, *, log: bool) -> list[float]:
    at = [step / (points - 1) for step in range(points)] if points > 1 else [0.5]
    values = [low * (high / low) ** share if log else low + (high - low) * share for share in at]
    return sorted({min(max(value, low), high) for value in values})


def _too_large(walk: _Walk) -> ValueError:
    counts = {name: len(choices) for name, choices in walk.choices.items()}
    product = " x ".join(f"{name} {count}" for name, count in counts.items())
    return ValueError(
        f"a grid has at most {MOST_POINTS:,} points, this one {prod(counts.values()):,} ({product}): "
        "give it fewer grid_points or a smaller space, or search it otherwise"
    )
