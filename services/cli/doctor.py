"""Checks of an installation: what is wrong, and how to fix it.

Each check is a generator: one question often leads to the next (a server that answers is asked for its version and its
clock), and a finding is printed as soon as it is known, since a service that is down takes seconds to time out.
"""

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from services.cli import lazy_modules as lazy
from services.settings import Settings, masked

_MIN_PYTHON = (3, 11)
_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "sqlalchemy", "onnxruntime")
_MIN_FREE_BYTES = 2 << 30  # early enough to act on; `estimate` says what one study needs
_MAX_CLOCK_SECONDS = 5.0  # times in reports come from several machines; leases follow the database's clock alone
_TIMEOUT_SECONDS = 5.0
# Findings about services: if one of them fails, the command ends with the exit code for "cannot be reached".
SERVICES = frozenset({"store", "shared storage", "MLflow", "Ray", "Ray jobs", "API", "API token"})


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        what: What was checked.
        ok: Whether it is as it should be.
        found: What the check found.
        remedy: How to fix it; empty if `ok`.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON types."""
        return asdict(self)


def examine(settings: Settings, *, api: str | None = None) -> Iterator[Finding]:
    """Check everything that a study needs, one finding at a time.

    The folder of studies and the databases are created if they do not exist yet.

    Args:
        settings: Of the installation.
        api: URL of a service to check as well, such as ``http://127.0.0.1:8080``.
    """
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _check_python,
        _check_packages,
        _check_accelerators,
        _check_folder,
        _check_store,
        _check_storage,
        _check_tracking,
        _check_ray,
        _check_jobs,
        _check_data,
    )
    for check in checks:
        yield from check(settings)
    if api is not None:
        yield from _check_api(settings, api)


def _check_python(settings: Settings) -> Iterator[Finding]:
    version, ok = ".".join(map(str, sys.version_info[:3])), sys.version_info[:2] >= _MIN_PYTHON
    yield Finding("Python", ok, version, "" if ok else "install Python 3.11 or newer and run `make install`")


def _check_packages(settings: Settings) -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "run `make install`, or `pip install 'nas-blockout[services]'`")


def _check_accelerators(settings: Settings) -> Iterator[Finding]:
    """Compare the cards that the driver reports with what torch can use."""
    devices, torch, what = lazy.devices, lazy.torch, "accelerators"
    cards, cuda = devices.cards(), torch.version.cuda
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", devices.SHARING_PIPES)
    guide = "docs/guides/gpu-server.md says how"
    if not cards:
        found = "no NVIDIA card answers; studies run on the processor" + (
            f", torch is built for CUDA {cuda}" * bool(cuda)
        )
        yield Finding(what, True, found)
        return
    for card in cards:
        yield Finding(what, True, f"{card.name}, {card.memory_bytes / (1 << 30):.0f} GiB, driver {card.driver}")
    if cuda is None:
        remedy = f"install a build of torch for CUDA, or studies run on the processor; {guide}"
        yield Finding(what, False, f"torch {torch.__version__} is built without CUDA", remedy)
    elif not torch.cuda.is_available():
        remedy = f"update the driver, or install a build of torch for an older CUDA; {guide}"
        yield Finding(
            what, False, f"torch is built for CUDA {cuda} and cannot use the driver {cards[0].driver}", remedy
        )
    else:
        shared = "runs: processes share a card at the same time" if devices.sharing_service(pipes) else "does not run"
        yield Finding(what, True, f"torch is built for CUDA {cuda}; NVIDIA's Multi-Process Service {shared}")


def _check_folder(settings: Settings) -> Iterator[Finding]:
    runs, what = settings.runs, "folder of studies"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=runs):
            free = shutil.disk_usage(runs).free
    except OSError as error:
        yield Finding(what, False, f"{runs}: {error.strerror}", "set NAS_BLOCKOUT_HOME to a writable folder")
        return
    ok = free >= _MIN_FREE_BYTES
    remedy = "" if ok else f"free {_MIN_FREE_BYTES >> 30} GiB of disk space"
    yield Finding(what, ok, f"{runs}, {free >> 30} GiB free", remedy)


def _check_store(settings: Settings) -> Iterator[Finding]:
    try:
        with lazy.store.Store.open(settings.store_url) as store:
            studies, seconds_ahead = len(store.studies(limit=1000)), store.clock_offset()
        yield Finding("store", True, f"{masked(settings.store_url)}, studies: {studies}")
        yield _clock_finding("store", seconds_ahead)
    except lazy.store.StoreError as error:
        yield Finding("store", False, str(error), "start the database, or correct NAS_BLOCKOUT_STORE_URL")


def _check_storage(settings: Settings) -> Iterator[Finding]:
    """Write a small file to shared storage, read it back and remove it: read access alone would not be enough."""
    if settings.artifacts is None:
        return
    remote = lazy.remote
    url, content = f"{settings.artifacts}/.doctor-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    remedy = "correct NAS_BLOCKOUT_ARTIFACTS, or the credentials that the storage library reads"
    with tempfile.TemporaryDirectory() as folder:
        sent, returned = Path(folder) / "sent", Path(folder) / "returned"
        sent.write_text(content, encoding="utf-8")
        try:
            remote.put(sent, url)
            ok = remote.fetch(url, returned) and returned.read_text(encoding="utf-8") == content
            remote.remove(url)
        except remote.ArtifactError as error:
            yield Finding("shared storage", False, str(error), remedy)
            return
    result = "can be written, read and deleted" if ok else "returned something other than what was written"
    yield Finding("shared storage", ok, f"{settings.artifacts} {result}", "" if ok else remedy)


def _check_tracking(settings: Settings) -> Iterator[Finding]:
    uri = settings.tracking_uri
    if uri is None:
        yield Finding("MLflow", True, "off")
        return
    try:
        yield Finding("MLflow", True, f"{masked(uri)}, {lazy.tracking.check(uri)}")
    except lazy.tracking.TrackingError as error:
        yield Finding("MLflow", False, str(error), "start the tracking server, or correct NAS_BLOCKOUT_TRACKING_URI")
        return
    if uri.startswith(("http://", "https://")):
        answer = _get(f"{uri.rstrip('/')}/version")
        if answer.status == 200:
            yield _version_finding("MLflow's server", answer.text, "mlflow")
        yield from _clock_of("MLflow", answer)


def _check_ray(settings: Settings) -> Iterator[Finding]:
    if settings.ray_address is None:
        yield Finding("Ray", True, f"started on this machine for each study, {os.cpu_count()} processors")
        return
    try:
        lazy.cluster.check(settings.ray_address)
        yield Finding("Ray", True, f"{settings.ray_address} answers")
    except lazy.cluster.ClusterError as error:
        yield Finding("Ray", False, str(error), "start the cluster, or correct NAS_BLOCKOUT_RAY_ADDRESS")


def _check_jobs(settings: Settings) -> Iterator[Finding]:
    if settings.jobs_address is None:
        return
    jobs = lazy.jobs.Jobs(settings.jobs_address)
    try:
        capacity = jobs.capacity()
        yield Finding(
            "Ray jobs", True, f"{settings.jobs_address}, {capacity['CPU']:g} CPUs and {capacity['GPU']:g} GPUs"
        )
        yield _version_finding("Ray's cluster", jobs.version(), "ray")
        yield from _clock_of("Ray", _get(f"{settings.jobs_address.rstrip('/')}/api/gcs_healthz"))
    except lazy.cluster.ClusterError as error:
        remedy = "start the cluster, correct NAS_BLOCKOUT_JOBS_ADDRESS, or set RAY_AUTH_TOKEN to the cluster's token"
        yield Finding("Ray jobs", False, str(error), remedy)


def _check_api(settings: Settings, address: str) -> Iterator[Finding]:
    answer = _get(f"{address.rstrip('/')}/readyz")
    if answer.status == 200:
        yield Finding("API", True, f"{address} is ready")
    elif answer.status == 503:
        remedy = "fix the service it names; `nas-blockout doctor` in the container of the API says more"
        yield Finding("API", False, f"{address} answers, but is not ready: {answer.text}", remedy)
    else:
        problem = f"answers {answer.status}" if answer.status else f"does not answer: {answer.text}"
        remedy = "start the service with `nas-blockout serve api`, or correct --api"
        yield Finding("API", False, f"{address} {problem}", remedy)
    yield from _clock_of("API", answer)
    if answer.status and settings.api_token is not None:
        headers = {"Authorization": f"Bearer {settings.api_token}"}
        status = _get(f"{address.rstrip('/')}/v1/studies?limit=1", headers).status
        ok, remedy = status == 200, "set NAS_BLOCKOUT_API_TOKEN to the value that the service was started with"
        yield Finding("API token", ok, "accepted" if ok else f"answers {status}", "" if ok else remedy)


def _check_data(settings: Settings) -> Iterator[Finding]:
    """Load the digits, the one data set that an installation brings along."""
    hint = "digits come with scikit-learn; for others see `nas-blockout data list`"
    try:
        images = len(lazy.data.load(lazy.data.DataSettings(name="digits")).train)
        yield Finding("data", True, f"{images} training images of digits, other data sets in {settings.data}; {hint}")
    except (ImportError, ValueError, OSError) as error:
        yield Finding("data", False, f"cannot read the digits: {error}", "run `make install`")


@dataclass(frozen=True, slots=True)
class _Answer:
    """An HTTP answer.

    Args:
        status: Its status; 0 if there was no answer.
        text: The start of its body in one line, or why there was no answer.
        seconds_ahead: How far the server's clock is ahead of ours, if it says what time it is.
    """

    status: int
    text: str
    seconds_ahead: float | None = None


def _get(url: str, headers: Mapping[str, str] | None = None) -> _Answer:
    httpx = lazy.httpx
    try:
        answer = httpx.get(url, headers=dict(headers or {}), timeout=_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        return _Answer(0, str(error) or type(error).__name__)
    except httpx.InvalidURL as error:
        return _Answer(0, str(error))
    text = " ".join(answer.text.split())[:200]
    try:
        server_time = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return _Answer(answer.status_code, text)
    return _Answer(answer.status_code, text, (server_time - datetime.now(UTC)).total_seconds())


def _clock_of(what: str, answer: _Answer) -> Iterator[Finding]:
    if answer.seconds_ahead is not None:
        yield _clock_finding(what, answer.seconds_ahead)


def _clock_finding(what: str, seconds_ahead: float) -> Finding:
    difference = f"{abs(seconds_ahead):.1f} s {'ahead of' if seconds_ahead > 0 else 'behind'} this machine"
    ok = abs(seconds_ahead) <= _MAX_CLOCK_SECONDS
    return Finding(f"clock of {what}", ok, difference, "" if ok else "synchronize both clocks with NTP")


def _version_finding(what: str, theirs: str, package: str) -> Finding:
    """Compare major and minor version: the protocols of MLflow and Ray change with these, not with patches."""
    ours = metadata.version(package)
    ok = theirs.split(".")[:2] == ours.split(".")[:2]
    remedy = "" if ok else f"run the same version of {package} on both sides; constraints.txt lists the tested ones"
    return Finding(what, ok, theirs if ok else f"{theirs}, but {ours} is installed here", remedy)
