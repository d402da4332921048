"""The editor of a study: examples to begin with, and the lines of a text with the errors that belong to them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from services.api.requests import allowed_code
from services.api.schemas import Problem
from services.settings import Settings
from services.study_config.yaml_reader import bundled, read_document, read_text

EMPTY = "empty"
_EMPTY_FILE = Path(__file__).parents[2] / "templates" / "new_study.yaml"
LEAST_LINES = 16
MOST_LINES = 2000  # a longer text is edited without numbers


@dataclass(frozen=True, slots=True)
class Example:
    """A study to begin with.

    Args:
        name: Its name.
        question: What it asks.
    """

    name: str
    question: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the editor.

    Args:
        number: From 1.
        errors: What is wrong at this line.
    """

    number: int
    errors: tuple[str, ...]


def examples(settings: Settings) -> list[Example]:
    """Return the bundled studies that this service runs: those whose code and weights its operator allows."""
    return [
        Example(name, str(found.get("question", ""))) for name, found in _bundled() if not _refused(found, settings)
    ]


def example_text(name: str) -> str | None:
    """Return the text of a bundled study, or of the commented empty one; None if there is none of that name."""
    if name == EMPTY:
        return _EMPTY_FILE.read_text(encoding="utf-8")
    path = bundled().get(name)
    return None if path is None else read_text(path)


def lines(text: str, problem: Problem | None) -> list[Line]:
    """Return the lines of a text with the errors at each; errors that name no line are at none."""
    errors: dict[int, list[str]] = {}
    if problem is not None:
        found = [(broken.line, broken.message) for broken in problem.errors] or [(problem.line, problem.message)]
        for line, message in found:
            if line is not None:
                errors.setdefault(line, []).append(message)
    count = max(LEAST_LINES, text.count("\n") + 1)
    if count > MOST_LINES:
        return []
    return [Line(number, tuple(errors.get(number, ()))) for number in range(1, count + 1)]


@lru_cache(maxsize=1)
def _bundled() -> list[tuple[str, dict[str, object]]]:
    return [(name, read_document(path)) for name, path in bundled().items()]


def _refused(document: dict[str, object], settings: Settings) -> bool:
    data = document.get("data")
    has_folder = isinstance(data, dict) and "folder" in data
    return has_folder or bool(allowed_code.refused(document, settings))
