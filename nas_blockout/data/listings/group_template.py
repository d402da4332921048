"""The group of an image by its path: a template in the manner of shell patterns, with angle brackets around the group.

``<patient#>_*`` takes `patient12` from ``patient12_scan3.png``. A regular expression would say more, but some take
exponential time, and Python cannot stop them; a template takes time in proportion to its length times the path's.
"""

from dataclasses import dataclass
from pathlib import Path

from nas_blockout.settings_fields import Pattern

MOST_CHARACTERS = 200
TEMPLATE = Pattern(
    r"[^<>]{0,199}<[^<>]{1,198}>[^<>]{0,199}",
    "a path with one pair of < and > around the group, in which * stands for any characters, # for digits and ? for "
    "one character, such as <patient#>_*",
    "<patient#>_*",
)


@dataclass(frozen=True, slots=True)
class GroupTemplate:
    """Takes the group out of paths.

    ``*`` stands for any number of characters, none included, as few as the rest allows; ``#`` for one digit or more, as
    many as there are; ``?`` for one character; none of them for a slash. Angle brackets enclose the group. Anything
    else stands for itself.

    Args:
        text: The template. With n slashes it must match the last n + 1 parts of a path, from their beginning to the
            end, so that ``<*>/*`` takes the name of the folder of a file, and without any the name of the file.
    """

    text: str

    def group_of(self, path: Path) -> str | None:
        """Return the group of a path; None if the template does not match, or the group would be empty."""
        name = "/".join(path.parts[-1 - self.text.count("/") :])
        return _group(self.text, name) if name.count("/") == self.text.count("/") else None


def _group(template: str, name: str) -> str | None:
    # Positions in both texts, and where the group begins and ends. What a state leads to depends on the positions
    # alone, so each pair is looked at once; the first to arrive is the preferred one, as for shell patterns.
    stack: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]
    seen: set[tuple[int, int]] = set()
    while stack:
        at, place, begin, end = stack.pop()
        if (at, place) in seen:
            continue
        seen.add((at, place))
        if at == len(template):
            if place == len(name) and end > begin:
                return name[begin:end]
            continue
        sign = template[at]
        char = name[place] if place < len(name) else ""
        if sign == "<":
            stack.append((at + 1, place, place, place))
        elif sign == ">":
            stack.append((at + 1, place, begin, place))
        elif sign == "*":
            stack += [(at, place + 1, begin, end)] * (char not in ("", "/")) + [(at + 1, place, begin, end)]
        elif sign == "#":
            digit = "0" <= char <= "9" and char != ""
            stack += [(at + 1, place + 1, begin, end), (at, place + 1, begin, end)] if digit else []
        elif char and (sign == char or (sign == "?" and char != "/")):
            stack.append((at + 1, place + 1, begin, end))
    return None
