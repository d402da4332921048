"""Connection to a Ray cluster: whether an address answers, its token, and whether this process is one of its jobs."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ANSWER_SECONDS = 5.0
START_VARIABLE = "RAY_raylet_start_wait_time_s"  # how long Ray waits for a node of its own
LEAST_START_SECONDS, MOST_START_SECONDS = 30, 120  # Ray's own, and where a node that has crashed should be given up
# Ray sets this variable only for the entrypoint of a job. RAY_ADDRESS alone proves nothing: users set it as well.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_DEFAULT_TOKEN = Path(".ray") / "auth_token"


# What Ray puts below a temporary folder, `ray/session_.../sockets/plasma_store`, has up to 70 bytes, and the name of a
# socket must not have more than 107.
_LONGEST_TEMPORARY_FOLDER = 36

# What helps where Ray could not be joined at an address, or not be started: what it says itself names neither.
_JOINING = {
    None: "run the command again; if that does not help, `nas-blockout doctor` may know why",
    "auto": "start one by `ray start --head`, or leave NAS_BLOCKOUT_RAY_ADDRESS empty for one of the study's own",
}
_JOINING_A_NAMED_ONE = (
    "it must run the same version of Ray as this process, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN must hold the "
    "token that it was started with"
)


class ClusterError(RuntimeError):
    """Ray cannot be reached, or the cluster is too small for a study."""


def check(address: str) -> None:
    """Check that something listens at an address such as ``ray://host:10001`` or ``host:6379``; ``auto`` always passes.

    `ray.init` itself takes much longer to give up on an address where nothing listens.

    Raises:
        ClusterError: Nothing listens there.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"Ray cannot be reached at {address}: {error}") from error


def short_folder(root: Path = Path("/tmp")) -> str | None:  # noqa: S108  # made so that nobody else can enter it
    """Return a folder of this user for the sockets of a Ray on this machine, or None where its own choice is short.

    Args:
        root: Where it is made.

    Raises:
        ClusterError: The temporary folder has a path that is too long for sockets, and none can be had below `root`.
    """
    given = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(given)) <= _LONGEST_TEMPORARY_FOLDER:
        return None
    folder = root / f"nas-blockout-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ClusterError(_too_long(given, str(error))) from error
    if found.st_uid != os.getuid() or folder.is_symlink() or found.st_mode & 0o022:
        raise ClusterError(_too_long(given, f"{folder} belongs to somebody else, or others may write to it"))
    return str(folder)


def _too_long(given: str, why: str) -> str:
    return (
        f"Ray cannot have sockets below {given}, whose path has more than {_LONGEST_TEMPORARY_FOLDER} bytes, and there "
        f"is no other place: {why}; set TMPDIR to a folder with a shorter path"
    )


def start_seconds(load: float | None = None, processors: int | None = None) -> int:
    """Return how long a node of our own may take to start: on a loaded machine Ray's 30 seconds are often too few.

    Args:
        load: Processes that want to run; by default, the average of the last minute.
        processors: Of the machine.
    """
    wanting = os.getloadavg()[0] if load is None else load
    each = wanting / (processors or os.cpu_count() or 1)
    return round(min(MOST_START_SECONDS, LEAST_START_SECONDS * max(1.0, each)))


def started(start: Callable[[], object], stop: Callable[[], object]) -> None:
    """Start a Ray on this machine, once more if it was too slow.

    Args:
        start: Starts it; Ray says by a bare `Exception`, and by nothing else of that type, that it was too slow.
        stop: Ends what `start` has begun.

    Raises:
        ClusterError: It was too slow twice.
    """
    for last in (False, True):
        try:
            start()
        except Exception as error:
            if type(error) is not Exception or "timed out during startup" not in str(error):
                raise
            stop()
            if last:
                given = os.environ.get(START_VARIABLE, str(LEAST_START_SECONDS))
                raise ClusterError(
                    f"Ray did not start within {given} seconds, twice: the machine is too busy; run the command again "
                    f"when less else runs on it, set {START_VARIABLE} to more seconds, or start Ray by `ray start "
                    "--head` and name it in NAS_BLOCKOUT_RAY_ADDRESS"
                ) from error
        else:
            return


@contextmanager
def explained(address: str | None) -> Iterator[None]:
    """Translate what Ray raises where it cannot be started or joined into a `ClusterError` with a remedy.

    Args:
        address: Of the cluster that is joined; None where one is started on this machine.
    """
    from ray.exceptions import RayError

    try:
        yield
    except ClusterError:
        raise
    except (ConnectionError, ValueError, RuntimeError, OSError, RayError) as error:
        remedy = _JOINING.get(address, _JOINING_A_NAMED_ONE)
        raise ClusterError(f"Ray cannot be reached at {address or 'this machine'}: {error}; {remedy}") from error


def surrounding_cluster(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the address of the cluster that runs this process as a job, or None outside of jobs.

    Args:
        environment: Variables by name; by default, the environment of the process.
    """
    values = os.environ if environment is None else environment
    return values.get("RAY_ADDRESS") or None if _JOB in values else None


def token(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the token of the cluster, which is looked for in the same places as Ray does; None if there is none.

    Args:
        environment: Variables by name; by default, the environment of the process.

    Raises:
        ClusterError: The file that ``RAY_AUTH_TOKEN_PATH`` names cannot be read.
    """
    values = os.environ if environment is None else environment
    if values.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if secret := values.get("RAY_AUTH_TOKEN", "").strip():
        return secret
    configured = values.get("RAY_AUTH_TOKEN_PATH", "").strip()
    path = Path(configured) if configured else Path.home() / _DEFAULT_TOKEN
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if configured:  # only the default file may be missing
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH must name the file of Ray's token, got {path}: {error}") from None
        return None
