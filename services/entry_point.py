"""The console script: runs the command line or, where only the library is installed, says what else to install.

At the top it imports the standard library alone, since without the extra there is nothing else to import.
"""

import gc
import io
import os
import signal
import sys
from types import FrameType

_OURS = ("nas_blockout", "search_spaces", "services")
_USAGE, _INTERRUPTED = 2, 130  # as in `console`, which imports Typer


def main() -> None:
    """Run the command line; without the packages of the extra ``services``, end with one sentence and exit code 2."""
    signal.signal(
        signal.SIGINT, _end_at_once
    )  # until the command line is imported, which takes a second, and has its own
    _open_standard_streams()
    _degrade_unknown_characters()
    # By default the collector goes through all that is imported again and again: a fifth of the time of `run`.
    gc.set_threshold(20_000, 50, 100)
    try:
        from services.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in _OURS:  # a mistake of ours, which no installation mends
            raise
        sys.stderr.write(
            f"error: the command line needs the extra 'services', of which {name} is not installed; "
            "run: pip install 'nas-blockout[services]'\n"
        )
        sys.exit(_USAGE)


def _open_standard_streams() -> None:
    """Let what nobody wants to read go nowhere, where a stream was closed: `nas-blockout list >&-`.

    Python has no stream then, and the next file that is opened, such as a database, would be what others write to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))  # noqa: SIM115  # for as long as the process lives


def _degrade_unknown_characters() -> None:
    """Write a question mark for what a terminal without UTF-8 does not have, instead of ending with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process: nothing has begun that an exception would have to end in order, and imports may swallow one."""
    os.write(2, b"interrupted; run the same command again\n")
    os._exit(_INTERRUPTED)
