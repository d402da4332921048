"""What all commands share: exit codes, two consoles, JSON; and that no text from outside is ever taken for markup."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.settings import Settings

DONE, FAILED, USAGE, NOT_FOUND, SOME_FAILED, UNREACHABLE, UNVERIFIED = range(7)
INTERRUPTED, TERMINATED = 130, 143
PIPE_COLUMNS = 200

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the study file, such as budget.sample_passes; repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def safe_text(text: object, *, style: str = "") -> Text:
    """Return a text as it may be shown: no markup, and a replacement mark for what would steer the terminal."""
    return Text("".join(mark if mark.isprintable() or mark == "\n" else "\ufffd" for mark in str(text)), style=style)


def print_line(text: object) -> None:
    """Write results to standard output."""
    _console(stderr=False).print(safe_text(text), highlight=False, soft_wrap=True)


def log(text: object) -> None:
    """Write progress and errors to standard error."""
    _console(stderr=True).print(safe_text(text), highlight=False, soft_wrap=True)


def print_table(renderable: Any) -> None:
    """Write a table to standard output."""
    _console(stderr=False).print(renderable, highlight=False)


def errors() -> Console:
    """Return the console of standard error."""
    return _console(stderr=True)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, title: str | None = None) -> Table:
    """Return a table of texts; numbers are numbers only to those who read them."""
    drawn = Table(title=safe_text(title) if title else None, title_justify="left")
    for column in columns:
        drawn.add_column(safe_text(column))
    for row in rows:
        drawn.add_row(*map(safe_text, row))
    return drawn


def installation() -> Settings:
    """Return the settings of the environment; data sets lie in ``data`` in the home folder if they say nothing."""
    settings = Settings.from_environment()
    return replace(settings, data=settings.data or settings.home / "data")


def print_json(document: Any) -> None:
    """Write JSON to standard output; NaN and infinity, which JSON does not have, are refused."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def logger(*, quiet: bool) -> Callable[[str], None]:
    """Return what writes progress, or what writes nothing."""
    return (lambda text: None) if quiet else log


def fail(code: int, message: str) -> NoReturn:
    """End the command with one line that says why."""
    log(f"error: {message}")
    raise typer.Exit(code)


def _console(*, stderr: bool) -> Console:
    """Return a console of what the stream is now; a pipe gets lines wide enough for whole tables."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return Console(stderr=stderr, markup=False, emoji=False, width=width)
