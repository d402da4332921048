"""Errors of study files: every violated rule with its key, line, value and remedy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Errors of the library are plain text, such as `pruner.rungs: must ..., got [9]; do this`: key, rule, value and remedy.
_KEYED = re.compile(r"(?P<key>[A-Za-z_][\w-]*(?:\.[\w-]+)*): (?P<rule>.*)", re.DOTALL)
_GOT = re.compile(r", got (?P<value>.*?)(?:; .*)?$", re.DOTALL)

Path = tuple[str | int, ...]
NO_SUCH_KEY = "no such key"
MOST_VIOLATIONS = 100  # the search for near matches of thousands of wrong keys would keep the API busy


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated rule.

    Args:
        path: Path of the key: the keys and list indices that lead to it; empty for the whole document.
        rule: The rule.
        value: The value that violates it, shortened; None if there is none, or if the rule contains it.
        remedy: What to do, such as the most similar key that exists.
        line: Line of the file, from 1; None if the document is not a file.
        meant: The existing key that an unknown key probably stands for; None if there is none.
    """

    path: Path
    rule: str
    value: str | None = None
    remedy: str | None = None
    line: int | None = None
    meant: str | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(map(str, self.path))

    def __str__(self) -> str:
        """The violation in one line, without file and line number."""
        value = "" if self.value is None else f", got {self.value}"
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"{self.key}: {self.rule}{value}{remedy}" if self.path else f"{self.rule}{value}{remedy}"


class StudyError(ValueError):
    """A study cannot be used; the message has the file and, for each violated rule, line, key, value and remedy.

    Args:
        message: Message for people, one line per violation.
        violations: The violations in the order of the file, at most `MOST_VIOLATIONS`; empty if the text itself cannot
            be read.
        unchecked: What can only be checked once these violations are gone, in a sentence; None if everything was.
    """

    def __init__(self, message: str, violations: Sequence[Violation] = (), unchecked: str | None = None) -> None:
        super().__init__(message)
        self.violations = tuple(violations)
        self.unchecked = unchecked

    @classmethod
    def of(cls, violations: Sequence[Violation], *, source: str, unchecked: str | None = None) -> "StudyError":
        """Return the error that lists all violations of a document, each of them once."""
        distinct = sorted(dict.fromkeys(violations), key=lambda violation: violation.line or 0)
        ordered, left = distinct[:MOST_VIOLATIONS], len(distinct) - MOST_VIOLATIONS
        lines = [
            f"{source}:{violation.line}: {violation}" if violation.line else f"{source}: {violation}"
            for violation in ordered
        ]
        if left > 0:
            unchecked = f"there are more errors than these {MOST_VIOLATIONS}"
        return cls("\n".join(lines), ordered, unchecked)


class StudyNotFound(LookupError):
    """There is neither a bundled study of that name nor such a file."""


def violation_of(error: ValueError, path: Path) -> Violation:
    """Return an error of the library as a violation of a rule for a key of the study file.

    Args:
        error: The error; its message may begin with a dotted key, as in ``pruner.rungs: must end before ...``.
        path: Path of the mapping that was read, to which that key is relative.
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


def violation_at(path: Path, text: str, *, key: str) -> Violation:
    """Return a conflict of the library as a violation.

    Args:
        path: Path of the key of the study file to which the conflict is attributed.
        text: Message of the conflict, which may begin with the key.
        key: The key as the library knows it, such as ``method.clusters``.
    """
    section, _, name = key.rpartition(".")
    text = one_line(text)
    for known in (f"{key}: ", f"{section}: ", f"{key} ", f"{name} "):
        text = text.removeprefix(known)
    violation = violation_of(ValueError(text), ())
    value = None if violation.value is None else violation.value.removeprefix(f"{name}=")
    return Violation(path, violation.rule, value, violation.remedy)


def with_lines(violations: Sequence[Violation], lines: "LineMap | None") -> list[Violation]:
    """Return violations with the lines of their keys in a file, and the names that a file of version 1 has for them."""
    if lines is None:
        return [*violations]
    placed = []
    for violation in violations:
        former, remedy = lines.former_name(violation.path), violation.remedy
        if former is not None:
            remedy = f"this file calls it {former!r}" + (f"; {remedy}" if remedy else "")
        placed.append(replace(violation, line=lines.of(violation.path), remedy=remedy))
    return placed


class LineMap:
    """The lines of the keys of a file.

    Args:
        lines: Line by path, from 1; the empty path is the document.
        former_names: Names that a file of version 1 may use for a key, by the current name of the key.
        absent: Paths of keys whose values do not come from the file.
    """

    def __init__(
        self, lines: dict[Path, int], former_names: dict[str, set[str]], absent: frozenset[Path] = frozenset()
    ) -> None:
        self._lines = lines
        self._former = former_names
        self._absent = absent

    def of(self, path: Path) -> int | None:
        """Return the line of a key, or of the innermost mapping around it in the file; None for an absent key."""
        place = self._place(path)
        return None if place is None else self._lines.get(place)

    def former_name(self, path: Path) -> str | None:
        """Return the name that the file has for a key, if that is not its current name."""
        place = self._place(path)
        if not place or len(place) < len(path) or str(place[-1]) == str(path[-1]):
            return None
        return str(place[-1])

    def _place(self, path: Path) -> Path | None:
        if any(path[: len(absent)] == absent for absent in self._absent):
            return None
        place: Path = ()
        for part in path:
            # The lines know every key as text, such as '1' for an arm that is wrongly named 1.
            names = [part, str(part), *sorted(self._former.get(str(part), ()))]
            inner = next(((*place, name) for name in names if (*place, name) in self._lines), None)
            if inner is None:
                break
            place = inner
        return place

    def without(self, path: Path) -> "LineMap":
        """Return the map without a key, whose value does not come from the file."""
        return LineMap(self._lines, self._former, self._absent | {path})


def shortened(value: Any) -> str:
    """Return a value as a text of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(text: str) -> str:
    """Return a text with every run of whitespace replaced by one space."""
    return " ".join(text.split())
