"""The grid of a search space: all combinations of its parameters, found by running the space repeatedly."""

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
        space: The space; it is called once per point.
        context: Experiment and data that the space starts from.
        points: Number of values per numeric parameter, at least 1.

    Raises:
        ValueError: The grid has more than `MOST_POINTS` points.
    """
    # The parameters are only known by running the space, so it runs like an odometer. The path has the position of
    # every choice of the last run; the next run advances the last choice that is not at its end, and resets the rest.
    path: list[int] = []
    grid_points: list[Point] = []
    while True:
        walk = _Walk(path, points)
        space(walk, context)
        if not grid_points and prod(map(len, walk.choices.values())) > MOST_POINTS:  # before running it a million times
            raise _too_large(walk)
        grid_points.append(walk.parameters)
        if len(grid_points) > MOST_POINTS:
            raise _too_large(walk)
        path = _next(walk)
        if not path:
            return tuple(grid_points)


class _Walk:
    """A trial that returns the choices at the positions of a path, and first choices after the end of the path."""

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
        """Return an integer of the grid."""
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
    """Return the path that follows that of a walk; an empty path after the last one."""
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
        "use fewer grid_points, a smaller space or another searcher"
    )
