"""Searchers and pruners of plug-ins in a study: whether they can be used, with their settings and their spaces."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.named_code import file_of
from nas_blockout.settings_fields import Conflict
from search_spaces import Context, Space
from search_spaces.trial import Choice
from services.search_plugins import PRUNER_CHOICES, SEARCHER_CHOICES, algorithm_named
from services.study_config import errors, settings_models
from services.study_config.errors import Violation
from services.study_config.layers import UNKNOWN

_CHOICES: Mapping[str, Choices[Any]] = {"searcher": SEARCHER_CHOICES, "pruner": PRUNER_CHOICES}
_DRAWS = 32  # of a space, by which it is found to be conditional


def named(name: str, arm: Mapping[str, Any]) -> Iterator[tuple[errors.Path, str]]:
    """Yield what an arm names as its searcher and its pruner, each with its path in the study file.

    Args:
        name: Of the arm.
        arm: The arm as plain values, marked.
    """
    for section in _CHOICES:
        path, code = _name(name, arm, section)
        if isinstance(code, str):
            yield path, code


def violations(name: str, arm: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why the searcher or the pruner of a plug-in cannot be used, or which rules its settings violate.

    Args:
        name: Of the arm.
        arm: The arm as plain values, marked.
    """
    for section, choices in _CHOICES.items():
        path, code = _name(name, arm, section)
        if not isinstance(code, str) or code in choices.built_in:  # which the model of the study file has checked
            continue
        file = file_of(code)
        if file is not None and not file.is_absolute():  # which is a rule of its own
            continue
        if fault := settings_models.unusable(choices, code, path):
            yield fault
            continue
        value = arm[section]
        given = value if isinstance(value, Mapping) else {}
        settings = {key: each for key, each in given.items() if key != "name" and each is not UNKNOWN}
        for each in settings_models.violations(section, {**settings, "name": code}):
            yield replace(each, path=(*path[:2], *each.path))


def unsearchable(searcher: str, space: Space, context: Context) -> Iterator[Conflict]:
    """Yield that the search algorithm of a plug-in declares that it cannot search a space with conditions.

    Args:
        searcher: Its name.
        space: The spaces of the arm, composed; they fit.
        context: What they start from.
    """
    try:
        algorithm = algorithm_named(searcher)
    except Conflict:  # which is reported by itself
        return
    if algorithm is None or algorithm.conditional_spaces or (other := conditional(space, context)) is None:
        return
    yield Conflict(
        f"searcher: {searcher} declares that it cannot search spaces whose parameters depend on others, as {other} "
        "does here: use another searcher, or another space",
        "searcher",
        "space",
    )


def conditional(space: Space, context: Context) -> str | None:
    """Return a parameter that exists, or has its range, only with some values of others; None if there is none.

    Seen in the first draws of the space alone: one that differs in rare combinations may be missed.

    Args:
        space: The space.
        context: What it starts from.
    """
    asked: list[dict[str, tuple[Any, ...]]] = []
    for place in range(_DRAWS):
        trial = _Drawn(place)
        space(trial, context)
        asked.append(trial.asked)
    first, *others = asked
    for other in others:
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            return differing[0]
    return None


class _Drawn:
    """A trial of random values that keeps what it was asked for."""

    def __init__(self, seed: int) -> None:
        self._draws = random.Random(seed)  # noqa: S311  # no secret
        self.asked: dict[str, tuple[Any, ...]] = {}
        self._values: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in the range."""
        value: float = self._drawn(name, (low, high, log), self._draws.uniform(low, high))
        return value

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a whole number in the range."""
        value: int = self._drawn(name, (low, high), self._draws.randint(low, high))
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""
        value: Choice = self._drawn(name, tuple(choices), self._draws.choice(choices))
        return value

    def _drawn(self, name: str, asked: tuple[Any, ...], value: Any) -> Any:
        self.asked[name] = asked
        return self._values.setdefault(name, value)


def _name(name: str, arm: Mapping[str, Any], section: str) -> tuple[errors.Path, Any]:
    value = arm.get(section)
    if isinstance(value, Mapping):
        return ("arms", name, section, "name"), value.get("name")
    return ("arms", name, section), value
