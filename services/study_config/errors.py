"""What is wrong with a study file: every rule that is broken, each with its key, line, value and remedy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

_KEYED = re.compile(r"(?P<key>[A-Za-z_][\w-]*(?:\.[\w-]+)*): (?P<rule>.*)", re.DOTALL)
_GOT = re.compile(r", got (?P<value>.*?)(?:; .*)?$", re.DOTALL)

Path = tuple[str | int, ...]
MOST_VIOLATIONS = 100  # a document of many wrong keys must not keep a service busy with looking for near matches


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule.

    Args:
        path: Where the key stands: the keys and positions that lead to it; empty for the whole document.
        rule: What must hold.
        value: What stands there, shortened; None where nothing does, or where the rule shows it.
        remedy: What to do, such as the nearest key that exists.
        line: Line of the file, from 1; None of a document without a file.
    """

    path: Path
    rule: str
    value: str | None = None
    remedy: str | None = None
    line: int | None = None

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        """The violation in one line, without its place in the file."""
        value = "" if self.value is None else f", got {self.value}"
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"{self.key}: {self.rule}{value}{remedy}" if self.path else f"{self.rule}{value}{remedy}"


class StudyError(ValueError):
    """A study that cannot be used; the message names the file, and of every broken rule line, key, value and remedy.

    Args:
        message: For people, one line for each violation.
        violations: The broken rules, in the order of the file, at most `MOST_VIOLATIONS`; empty where the text itself
            cannot be read.
    """

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, violations: Sequence[Violation], *, source: str) -> "StudyError":
        """Return the error of all violations of one document."""
        ordered = sorted(dict.fromkeys(violations), key=lambda each: each.line or 0)[:MOST_VIOLATIONS]
        lines = [f"{source}:{each.line}: {each}" if each.line else f"{source}: {each}" for each in ordered]
        return cls("\n".join(lines), ordered)


class StudyNotFound(LookupError):
    """No study of that name is bundled, and no such file exists."""


def violation_of(error: ValueError, path: Path) -> Violation:
    """Return what an error of the library means for the key below which it was raised.

    Args:
        error: Its message may begin with a dotted key, as in ``pruner.rungs: must end before ...``.
        path: Of the mapping that was read.
    """
    text = one_line(str(error))
    keyed = _KEYED.fullmatch(text)
    if keyed is not None and not keyed["key"].startswith("arms."):
        path, text = (*path, *keyed["key"].split(".")), keyed["rule"]
    value = _GOT.search(text)
    if value is None:
        return Violation(path, text)
    remedy = text[value.end("value") :].removeprefix("; ")
    return Violation(path, text[: value.start()], value["value"], remedy or None)


def with_lines(violations: Sequence[Violation], lines: "LineMap | None") -> list[Violation]:
    """Return violations with the lines of a file on which their keys stand."""
    return [*violations] if lines is None else [replace(each, line=lines.of(each.path)) for each in violations]


class LineMap:
    """On which line of a file every key stands.

    Args:
        lines: Line by path, from 1; the empty path is the document.
        former_names: By the name of a key now: names that the file may have for it.
        absent: Paths of what was set elsewhere.
    """

    def __init__(
        self, lines: dict[Path, int], former_names: dict[str, set[str]], absent: frozenset[Path] = frozenset()
    ) -> None:
        self._lines = lines
        self._former = former_names
        self._absent = absent

    def of(self, path: Path) -> int | None:
        """Return the line of a key, or of the nearest mapping around it that the file has; None of what is absent."""
        if any(path[: len(absent)] == absent for absent in self._absent):
            return None
        place: Path = ()
        for part in path:
            names = [part, *sorted(self._former.get(str(part), ()))]
            inner = next((found for name in names if (found := (*place, name)) in self._lines), None)
            if inner is None:
                break
            place = inner
        return self._lines.get(place)

    def without(self, path: Path) -> "LineMap":
        """Return the map without a key that does not come from the file."""
        return LineMap(self._lines, self._former, self._absent | {path})


def shortened(value: Any) -> str:
    """Return a value as a text of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text: str) -> str:
    """Return a text with every run of white space as one space."""
    return " ".join(text.split())
