"""What the worker does beside running studies: deletes those kept long enough, purges, and trims the audit log."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nas_blockout.serialization import count_of
from services.files.remote import ArtifactError
from services.removal.purge import purge
from services.settings import Settings
from services.store import Actor, Store, StoreError, acting
from services.tracking import TrackingError

ROUND_SECONDS = 60.0
DAY_SECONDS = 86_400.0
_LOCK = "removal"
_RETENTION = Actor("retention")
_WORKER = Actor("worker")
_FAILURES = (TrackingError, ArtifactError, OSError)

Log = Callable[[str], None]


class TidyRound:
    """One round after the other; what fails is logged once, and tried again in the next round.

    Args:
        settings: Of the installation.
        store: Holds the studies.
        log: Called with one line for each change, and each failure.
    """

    def __init__(self, settings: Settings, store: Store, *, log: Log) -> None:
        self._settings, self._store, self._log = settings, store, log
        self._failed: dict[str, str] = {}

    def __call__(self) -> None:
        """Do everything that is due, unless another process is doing so.

        Raises:
            StoreError: The store cannot be used.
        """
        with self._store.alone(_LOCK) as alone:
            if not alone:
                return
            if self._settings.retention_days is not None:
                grace = DAY_SECONDS * self._settings.delete_grace_days
                with acting(_RETENTION):
                    expired = self._store.delete_expired(
                        days=self._settings.retention_days, grace_seconds=grace, by=_RETENTION.name
                    )
                for study in expired:
                    self._log(f"{study}: deleted, since it ended {count_of(self._settings.retention_days, 'day')} ago")
            for study in self._store.due_for_purge():
                self._purge(study)
            self._store.trim_audit_log(days=self._settings.audit_days)

    def _purge(self, study: str) -> None:
        try:
            with acting(_WORKER):
                purge(self._settings, self._store, study)
        except _FAILURES as error:
            if self._failed.get(study) != str(error):
                self._log(f"{study}: not purged yet: {error}")
            self._failed[study] = str(error)
        else:
            self._failed.pop(study, None)
            self._log(f"{study}: purged; its name is free")


@contextmanager
def tending(settings: Settings, store: Store, *, log: Log, pause: float = ROUND_SECONDS) -> Iterator[None]:
    """Do rounds in a thread until the block ends; leases of studies do not wait for MLflow or storage."""
    ended = threading.Event()
    tidy = TidyRound(settings, store, log=log)

    def rounds() -> None:
        while not ended.is_set():
            try:
                tidy()
            except StoreError as error:
                log(f"deleted studies are not purged: {error}")
            ended.wait(pause)

    thread = threading.Thread(target=rounds, name="removal", daemon=True)  # MLflow's retries must not keep the process
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=pause)
