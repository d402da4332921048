"""Limits that the operator sets on what the submitted studies of an owner have used: GPU-hours and gigabytes."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from services.settings import Settings
from services.store import Store

DAYS = 30
REFRESH_SECONDS = 60.0
_SECONDS_AN_HOUR = 3600.0
_GIGABYTE = 10**9


@dataclass
class OwnerLimits:
    """Measures what owners have used, at most once a minute, and only what is limited.

    Args:
        gpu_hours: GPU-hours that an owner may use in 30 days; None for no limit.
        gigabytes: Gigabytes of files beyond which no further study of an owner starts; None for no limit.
        runs: Folder with a folder for each study.
        refresh_seconds: How long a measurement is used.
    """

    gpu_hours: int | None = None
    gigabytes: int | None = None
    runs: Path = Path("runs")
    refresh_seconds: float = REFRESH_SECONDS
    _measured_at: float | None = field(default=None, init=False)
    _reasons: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: ({}, {}), init=False)

    @classmethod
    def of(cls, settings: Settings) -> "OwnerLimits":
        """Return the limits of an installation."""
        return cls(settings.owner_gpu_hours, settings.owner_gigabytes, settings.runs)

    def exceeded(
        self, store: Store, gpus: Callable[[str], float], *, now: datetime
    ) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return by owner why no further study starts, and why those that run have to stop.

        Args:
            store: Knows the owners, and how long their trials have trained.
            gpus: Returns the GPUs of a trial of a study.
            now: Time of the store's clock.
        """
        if self.gpu_hours is None and self.gigabytes is None:
            return {}, {}
        if self._measured_at is None or time.monotonic() - self._measured_at >= self.refresh_seconds:
            owners = store.owners()
            spent = self._over_gpu_hours(store, owners, gpus, now=now) if self.gpu_hours is not None else {}
            full = self._over_gigabytes(owners) if self.gigabytes is not None else {}
            self._measured_at, self._reasons = time.monotonic(), ({**full, **spent}, spent)
        return self._reasons

    def _over_gpu_hours(
        self, store: Store, owners: Mapping[str, str], gpus: Callable[[str], float], *, now: datetime
    ) -> dict[str, str]:
        hours: dict[str, float] = {}
        since = now - timedelta(days=DAYS)
        # Asked first: a study that is purged in between counts twice for a minute rather than not at all.
        trained, purged = store.seconds_trained(since), store.purged_gpu_seconds(since)
        for study, seconds in trained.items():
            used = seconds * gpus(study) / _SECONDS_AN_HOUR
            hours[owners[study]] = hours.get(owners[study], 0.0) + used
        for owner, seconds in purged.items():
            hours[owner] = hours.get(owner, 0.0) + seconds / _SECONDS_AN_HOUR
        return {
            owner: f"waits: its owner has used {used:.1f} of {self.gpu_hours} GPU-hours of the last {DAYS} days"
            for owner, used in hours.items()
            if self.gpu_hours is not None and used >= self.gpu_hours
        }

    def _over_gigabytes(self, owners: Mapping[str, str]) -> dict[str, str]:
        sizes: dict[str, int] = {}
        for study, owner in owners.items():
            sizes[owner] = sizes.get(owner, 0) + _size(self.runs / study)
        return {
            owner: f"waits: the files of its owner take {size / _GIGABYTE:.1f} of {self.gigabytes} GB"
            for owner, size in sizes.items()
            if self.gigabytes is not None and size >= self.gigabytes * _GIGABYTE
        }


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder, 0 if there is none; files that vanish meanwhile are left out."""
    return sum(map(_bytes, _files(folder)))


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if not path.is_symlink()) if folder.is_dir() else ()


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
