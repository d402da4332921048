"""Patterns in the nav of mkdocs.yml: each stands for the pages that it matches and that no other entry names."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Replace the patterns of the nav by pages; MkDocs calls this when it knows all files."""
    pages = [file.src_uri for file in files.documentation_pages()]
    config.nav = expanded(config.nav, pages)
    return files


def expanded(nav: list[Any], pages: Iterable[str]) -> list[Any]:
    """Return the nav without patterns.

    Args:
        nav: As in mkdocs.yml; a pattern is a path with a ``*``, which matches within one folder only.
        pages: Paths of all pages, relative to the folder of the docs.
    """
    free = sorted(set(pages) - {entry for entry in entries(nav) if "*" not in entry})
    return _expanded(nav, free)


def entries(nav: Any) -> Iterator[str]:
    """Yield the paths and patterns of a nav, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(each)


def _expanded(nav: list[Any], free: list[str]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            [(title, inside)] = entry.items()
            whole = [inside] if isinstance(inside, str) and "*" in inside else inside
            found.append({title: _expanded(whole, free) if isinstance(whole, list) else whole})
        elif "*" in entry:
            matched = [page for page in free if _matches(page, entry)]
            found.extend(matched)
            free[:] = [page for page in free if page not in matched]
        else:
            found.append(entry)
    return found


def _matches(page: str, pattern: str) -> bool:
    """Whether a page is in the pattern's own folder, and has a name that it matches."""
    one, other = PurePosixPath(page), PurePosixPath(pattern)
    return one.parent == other.parent and fnmatchcase(one.name, other.name)
