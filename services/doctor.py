"""What is wrong with an installation, and how to mend it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from services.settings import Settings, masked

_PYTHON = (3, 11)
_NEEDED = ("torch", "torchvision", "ray", "optuna", "mlflow", "sqlalchemy", "onnxruntime")
_FREE_BYTES = 2 << 30
SERVICES = frozenset({"store", "MLflow", "Ray"})


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


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a study needs, one thing after another; what is missing of folder and stores is made."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _folder,
        _store,
        _tracking,
        _ray,
        _data,
    )
    for check in checks:
        yield from check(settings)


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
            found = len(store.studies(limit=1000))
        yield Finding("store", True, f"{masked(settings.store_url)}, studies: {found}")
    except StoreError as error:
        yield Finding("store", False, str(error), "start the database, or correct NAS_BLOCKOUT_STORE_URL")


def _tracking(settings: Settings) -> Iterator[Finding]:
    if settings.tracking_uri is None:
        yield Finding("MLflow", True, "off")
        return
    from services.tracking import TrackingError, check

    try:
        yield Finding("MLflow", True, f"{masked(settings.tracking_uri)}, {check(settings.tracking_uri)}")
    except TrackingError as error:
        yield Finding("MLflow", False, str(error), "start the tracking server, or correct NAS_BLOCKOUT_TRACKING_URI")


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


def _data(settings: Settings) -> Iterator[Finding]:
    from nas_blockout.data import DataSettings, load

    known = "digits come with scikit-learn; for others see `nas-blockout data list`"
    try:
        images = len(load(DataSettings(name="digits")).train)
        yield Finding("data", True, f"{images} digits to train on, other data sets in {settings.data}; {known}")
    except (ImportError, ValueError, OSError) as error:
        yield Finding("data", False, f"the digits cannot be read: {error}", "run `make install`")
