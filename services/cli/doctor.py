"""What is wrong with an installation, and how to mend it."""

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

from services.settings import Settings, masked

_PYTHON = (3, 11)
_NEEDED = ("torch", "torchvision", "ray", "optuna", "mlflow", "sqlalchemy", "onnxruntime")
_FREE_BYTES = 2 << 30
_CLOCK_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
SERVICES = frozenset({"store", "shared storage", "MLflow", "Ray", "Ray jobs", "API", "API token"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: What was looked at.
        ok: Whether it is as it should be.
        found: What was found.
        remedy: How to mend it; empty if nothing is wrong.
    """

    what: str
    ok: bool
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON types."""
        return asdict(self)


def examine(settings: Settings, *, api: str | None = None) -> Iterator[Finding]:
    """Look at everything that a study needs, one thing after another; what is missing of folder and stores is made.

    Args:
        settings: Of the installation.
        api: Address of a service, such as ``http://127.0.0.1:8000``, to be asked as well.
    """
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _folder,
        _store,
        _storage,
        _tracking,
        _ray,
        _jobs,
        _data,
    )
    for check in checks:
        yield from check(settings)
    if api is not None:
        yield from _api(settings, api)


def _python(settings: Settings) -> Iterator[Finding]:
    version, recent = ".".join(map(str, sys.version_info[:3])), sys.version_info[:2] >= _PYTHON
    yield Finding("Python", recent, version, "" if recent else "install Python 3.11 or newer and run `make install`")


def _packages(settings: Settings) -> Iterator[Finding]:
    for name in _NEEDED:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "run `make install`, or `pip install 'nas-blockout[services]'`")


def _folder(settings: Settings) -> Iterator[Finding]:
    runs = settings.runs
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=runs):
            free = shutil.disk_usage(runs).free
    except OSError as error:
        yield Finding(
            "folder of studies", False, f"{runs}: {error.strerror}", "set NAS_BLOCKOUT_HOME to a folder you may write"
        )
        return
    enough = free >= _FREE_BYTES
    yield Finding("folder of studies", enough, f"{runs}, {free >> 30} GiB free", "" if enough else "free 2 GiB of disk")


def _store(settings: Settings) -> Iterator[Finding]:
    from services.store import Store, StoreError

    try:
        with Store.open(settings.store_url) as store:
            found, ahead = len(store.studies(limit=1000)), store.clock_ahead()
        yield Finding("store", True, f"{masked(settings.store_url)}, studies: {found}")
        yield _clock("store", ahead)
    except StoreError as error:
        yield Finding("store", False, str(error), "start the database, or correct NAS_BLOCKOUT_STORE_URL")


def _storage(settings: Settings) -> Iterator[Finding]:
    """Write a small file to shared storage, read it and remove it: a place that may only be read is of no use."""
    if settings.artifacts is None:
        return
    from services.files.remote import ArtifactError, fetch, put, remove

    url, content = f"{settings.artifacts}/.doctor-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    remedy = "correct NAS_BLOCKOUT_ARTIFACTS, or the credentials where the storage's library looks for them"
    with tempfile.TemporaryDirectory() as folder:
        sent, back = Path(folder) / "sent", Path(folder) / "back"
        sent.write_text(content, encoding="utf-8")
        try:
            put(sent, url)
            same = fetch(url, back) and back.read_text(encoding="utf-8") == content
            remove(url)
        except ArtifactError as error:
            yield Finding("shared storage", False, str(error), remedy)
            return
    found = "is written, read and cleared" if same else "does not give back what was written"
    yield Finding("shared storage", same, f"{settings.artifacts} {found}", "" if same else remedy)


def _tracking(settings: Settings) -> Iterator[Finding]:
    if settings.tracking_uri is None:
        yield Finding("MLflow", True, "off")
        return
    from services.mlflow_sync import TrackingError, check

    try:
        yield Finding("MLflow", True, f"{masked(settings.tracking_uri)}, {check(settings.tracking_uri)}")
    except TrackingError as error:
        yield Finding("MLflow", False, str(error), "start the tracking server, or correct NAS_BLOCKOUT_TRACKING_URI")
        return
    if settings.tracking_uri.startswith(("http://", "https://")):
        answer = _asked(f"{settings.tracking_uri.rstrip('/')}/version")
        if answer.status == 200:
            yield _version("MLflow's server", answer.text, "mlflow")
        yield from _clock_of("MLflow", answer)


def _ray(settings: Settings) -> Iterator[Finding]:
    if settings.ray_address is None:
        yield Finding("Ray", True, f"started for each study on this machine, {os.cpu_count()} processors")
        return
    from services.cluster import ClusterError, check

    try:
        check(settings.ray_address)
        yield Finding("Ray", True, f"{settings.ray_address} answers")
    except ClusterError as error:
        yield Finding("Ray", False, str(error), "start the cluster, or correct NAS_BLOCKOUT_RAY_ADDRESS")


def _jobs(settings: Settings) -> Iterator[Finding]:
    if settings.jobs_address is None:
        return
    from services.cluster import ClusterError
    from services.cluster.jobs import Jobs

    jobs = Jobs(settings.jobs_address)
    try:
        have = jobs.capacity()
        yield Finding("Ray jobs", True, f"{settings.jobs_address}, {have['CPU']:g} CPUs and {have['GPU']:g} GPUs")
        yield _version("Ray's cluster", jobs.version(), "ray")
        yield from _clock_of("Ray", _asked(f"{settings.jobs_address.rstrip('/')}/api/gcs_healthz"))
    except ClusterError as error:
        remedy = "start the cluster, correct NAS_BLOCKOUT_JOBS_ADDRESS, or set RAY_AUTH_TOKEN to the cluster's"
        yield Finding("Ray jobs", False, str(error), remedy)


def _api(settings: Settings, address: str) -> Iterator[Finding]:
    answer = _asked(f"{address.rstrip('/')}/readyz")
    if answer.status == 200:
        yield Finding("API", True, f"{address} is ready")
    elif answer.status == 503:
        remedy = "mend what is named, which `nas-blockout doctor` in its container says more of"
        yield Finding("API", False, f"{address} answers, but is not ready: {answer.text}", remedy)
    else:
        found = f"answers {answer.status}" if answer.status else f"does not answer: {answer.text}"
        yield Finding("API", False, f"{address} {found}", "start it with `nas-blockout serve api`, or correct --api")
    yield from _clock_of("API", answer)
    if answer.status and settings.api_token is not None:
        headers = {"Authorization": f"Bearer {settings.api_token}"}
        status = _asked(f"{address.rstrip('/')}/v1/studies?limit=1", headers).status
        known, remedy = status == 200, "set NAS_BLOCKOUT_API_TOKEN to the value with which the service was started"
        yield Finding("API token", known, "is known" if known else f"answers {status}", "" if known else remedy)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server said: its status, 0 without an answer; its text, or why; how far its clock is ahead, if known."""

    status: int
    text: str
    ahead: float | None = None


def _asked(url: str, headers: Mapping[str, str] | None = None) -> _Answer:
    import httpx

    try:
        answer = httpx.get(url, headers=dict(headers or {}), timeout=_ANSWER_SECONDS)
    except httpx.HTTPError as error:
        return _Answer(0, str(error) or type(error).__name__)
    except httpx.InvalidURL as error:
        return _Answer(0, str(error))
    text = " ".join(answer.text.split())[:200]
    try:
        moment = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError):
        return _Answer(answer.status_code, text)
    return _Answer(answer.status_code, text, (moment - datetime.now(UTC)).total_seconds())


def _clock_of(what: str, answer: _Answer) -> Iterator[Finding]:
    if answer.ahead is not None:
        yield _clock(what, answer.ahead)


def _clock(what: str, ahead: float) -> Finding:
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine"
    right = abs(ahead) <= _CLOCK_SECONDS
    return Finding(f"clock of {what}", right, found, "" if right else "set both clocks by NTP")


def _version(what: str, theirs: str, package: str) -> Finding:
    ours = metadata.version(package)
    same = theirs.split(".")[:2] == ours.split(".")[:2]
    remedy = "" if same else f"run the same {package} on both sides; constraints.txt has the versions that are tested"
    return Finding(what, same, theirs if same else f"{theirs}, here it is {ours}", remedy)


def _data(settings: Settings) -> Iterator[Finding]:
    from nas_blockout.data import DataSettings, load

    known = "digits come with scikit-learn; for others see `nas-blockout data list`"
    try:
        images = len(load(DataSettings(name="digits")).train)
        yield Finding("data", True, f"{images} digits to train on, other data sets in {settings.data}; {known}")
    except (ImportError, ValueError, OSError) as error:
        yield Finding("data", False, f"the digits cannot be read: {error}", "run `make install`")
