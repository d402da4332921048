"""The command line as tests call it: in this process, where it costs no start, or in a process of its own."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from services.cli.main import main
from services.store import Store
from tests.services.new_store import new_store

COMMAND = (sys.executable, "-c", "from services.entry_point import main; main()")
PATIENCE = 600.0  # seconds for what takes a tenth of them on a machine with nothing else to do
# For tests that run studies in this process: Ray's processes and files, and MLflow's database, are not ours to mend.
RUNS_HERE = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Ended(NamedTuple):
    """The exit code of a command, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Ended]


def of(home: Path, *, tracking: str | None = "none", **more: str) -> dict[str, str]:
    """Return the variables of an installation, with MLflow only where it is asked for: None leaves it as it comes."""
    told = {} if tracking is None else {"NAS_BLOCKOUT_TRACKING_URI": tracking}
    return {"NAS_BLOCKOUT_HOME": str(home), **told, **more}


def store_of(home: Path) -> Store:
    """Open the store of an installation, which has a new one if it has none yet."""
    path = home / "runs" / "nas_blockout.db"
    return Store.open(f"sqlite:///{path}") if path.exists() else new_store(path)


def here(*words: object, **variables: str) -> Ended:
    """Run the command line as its script does, in this process, with further variables in its environment."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, out, err = sys.excepthook, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
        finally:
            sys.excepthook = hook
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert "Traceback" not in err.getvalue()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def alone(*words: object, **variables: str) -> Ended:
    """Run the command line in a process of its own, with further variables in its environment."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
