"""What all commands share: exit codes, options, output to the two streams, tables and JSON.

Study names, error messages and file names come from outside. None of them is ever interpreted as Rich markup, and
control characters are replaced, so that no text can recolor or steer the terminal.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas_blockout.serialization import closest
from services.cli.help.completion import bundled_studies, stored_studies
from services.settings import Settings

DONE, FAILED, USAGE, NOT_FOUND, SOME_FAILED, UNREACHABLE, UNVERIFIED = range(7)
INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143  # as a shell says of a program that SIGINT, SIGPIPE, SIGTERM has ended
PIPE_COLUMNS = 200
_KEPT = "\n\u200c\u200d"  # the joiners of Persian and Indic names and of emoji, which steer nothing

StudyArgument = Annotated[
    str, typer.Argument(help="Name of a bundled study, or path to a study file.", autocompletion=bundled_studies)
]
StoredArgument = Annotated[str, typer.Argument(help="Name of a study in the store.", autocompletion=stored_studies)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the study file, such as budget.sample_passes=9000; can be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


def safe_text(text: object, *, style: str = "") -> Text:
    """Return a text that is shown literally: no markup, and control characters replaced by U+FFFD."""
    shown = "".join(char if char.isprintable() or char in _KEPT else "\ufffd" for char in str(text))
    return Text(shown, style=style)


def print_line(text: object) -> None:
    """Write a result to standard output."""
    _console(stderr=False).print(safe_text(text), highlight=False, soft_wrap=True)


def log(text: object) -> None:
    """Write progress or an error to standard error."""
    error_console().print(safe_text(text), highlight=False, soft_wrap=True)


def print_table(renderable: Any) -> None:
    """Write a table or a tree to standard output."""
    _console(stderr=False).print(renderable, highlight=False)


def error_console() -> Console:
    """Return the console of standard error."""
    return _console(stderr=True)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, title: str | None = None) -> Table:
    """Return a table whose cells are all shown literally."""
    rendered = Table(title=safe_text(title) if title else None, title_justify="left")
    for column in columns:
        rendered.add_column(safe_text(column))
    for row in rows:
        rendered.add_row(*map(safe_text, row))
    return rendered


def installation() -> Settings:
    """Return the settings from the environment; data sets default to the folder ``data`` in the home folder."""
    settings = Settings.from_environment()
    return replace(settings, data=settings.data or settings.home / "data")


def print_json(document: Any, *, in_one_line: bool = False) -> None:
    """Write JSON to standard output; NaN and infinity, which JSON does not have, raise a ValueError."""
    text = json.dumps(document, indent=None if in_one_line else 2, allow_nan=False)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()  # now: at the end of the process nobody could handle a reader that has gone
    except BrokenPipeError:
        _end_unread()


def logger(*, quiet: bool) -> Callable[[str], None]:
    """Return a function that logs texts, each warning once; with `quiet` warnings alone, which begin with that word."""
    told = set[str]()

    def tell(text: str) -> None:
        is_warning = text.startswith("warning: ")
        if text in told or (quiet and not is_warning):
            return
        if is_warning:
            told.add(text)
        log(text)

    return tell


def fail(code: int, message: str) -> NoReturn:
    """End the command with an exit code and a one-line error message."""
    log(f"error: {message}")
    raise typer.Exit(code)


def existing_folder(path: Path) -> Path:
    """Return the folder of an exported model; end the command if there is none, naming one beside it that is alike."""
    if not path.is_dir():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        alike = closest(path.name, beside)
        remedy = f"did you mean {path.parent / alike}?" if alike else "name one that `nas-blockout export` wrote"
        fail(NOT_FOUND, f"there is no folder {path}; {remedy}")
    return path


class _PipeConsole(Console):
    """A console that survives its reader, such as ``head``: without one of the results the command ends in silence.

    A study goes on where only nobody reads its progress: the results are more than the log.
    """

    def on_broken_pipe(self) -> None:
        """Let further output go nowhere; end the command if it was that of results."""
        if not self.stderr:
            _end_unread()
        _discard(sys.stderr)


def _end_unread() -> NoReturn:
    _discard(sys.stdout)
    raise SystemExit(UNREAD)


def _discard(stream: TextIO) -> None:
    """Let what is written to a stream go nowhere, also what it still holds and flushes at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _console(*, stderr: bool) -> Console:
    """Return a console for the stream as it is now (tests redirect it).

    Rich wraps tables at 80 columns when the output is not a terminal, which breaks rows for `grep`; a pipe gets lines
    wide enough for whole tables instead.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return _PipeConsole(stderr=stderr, markup=False, emoji=False, width=width)
