"""The console script: runs the command line or, where only the library is installed, says what else to install.

At the top it imports the standard library alone, since without the extra there is nothing else to import.
"""

import gc
import os
import sys

_OURS = ("nas_blockout", "search_spaces", "services")
_USAGE = 2  # as in `console`, which imports Typer


def main() -> None:
    """Run the command line; without the packages of the extra ``services``, end with one sentence and exit code 2."""
    _open_standard_streams()
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
