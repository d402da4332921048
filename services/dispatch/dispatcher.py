"""One worker: it leases a few studies at a time, and carries out what `decide` says about each."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from services.cluster import ClusterError
from services.cluster.jobs import Job, job_id
from services.dispatch.decision import Settle, Stop, Submit, decide, sentence
from services.store import LeaseLost, NotFound, QueueRow, StateError, Store, StoreError, StudyRow
from services.store.records import ENDED_STUDY
from services.study_config.errors import StudyError, one_line
from services.study_config.resolution import stored_study
from services.study_config.resolved_study import Study

MAX_RUNNING = 4
REFUSED_SECONDS = 600.0
MOST_TROUBLES = 3
_LOG = logging.getLogger(__name__)

Log = Callable[[str], None]


class Cluster(Protocol):
    """What the worker needs of the cluster; implemented by `services.cluster.jobs.Jobs`."""

    def submit(self, study: Study, *, attempt: int = 0, options: Sequence[str] = ()) -> Job:
        """Submit a study, or return the job that this attempt at it already is."""

    def job(self, id: str) -> Job | None:  # the cluster's own word
        """Return a job, or None if the cluster does not know it."""

    def stop(self, id: str) -> None:
        """Ask a job to stop."""

    def capacity(self) -> object:
        """Return what the cluster has; fails if it cannot be reached."""


class Dispatcher:
    """Runs the studies that it has leased, and leases more up to a limit.

    Args:
        store: Holds queue and studies.
        cluster: Runs the jobs.
        worker: Unique name of this worker.
        lease_seconds: How long a lease lasts unless it is renewed.
        max_running: Maximum number of leased studies.
        refused_seconds: How long to keep trying to submit a study that is too large for the cluster, which may grow.
        options: Words that the command of every job ends with: what it must write to, see `destination_options`.
        log: Called with one line for each change.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        *,
        worker: str,
        lease_seconds: float = 30.0,
        max_running: int = MAX_RUNNING,
        refused_seconds: float = REFUSED_SECONDS,
        options: Sequence[str] = (),
        log: Log = _LOG.info,
    ) -> None:
        self._store, self._cluster, self._worker = store, cluster, worker
        self._lease_seconds, self._max_running, self._refused_seconds = lease_seconds, max_running, refused_seconds
        self._options = tuple(options)
        self._log = log
        self._held: dict[str, None] = {}  # a set that keeps its order
        self._refused: dict[str, float] = {}  # by study, the time since when the cluster has no room for it
        self._troubles: dict[str, int] = {}  # by study, the rounds in succession that ended in an unexpected error
        self._stopping: set[str] = set()  # jobs that were asked to stop, which is done once

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the leased studies."""
        return tuple(self._held)

    def round(self) -> None:
        """Renew all leases, act on each study, and lease more studies.

        Raises:
            StoreUnreachable: The database is unreachable; leases may expire, and other workers take over.
            ClusterError: The cluster is unreachable; leases are kept.
        """
        # All leases first: acting on a study takes time, in which those of the others could expire.
        for row in [row for study in self.held if (row := self._renewed(study)) is not None]:
            self._handle(row)
        new: set[str] = set()
        while len(self._held) < self._max_running:
            taken = self._store.acquire_lease(self._worker, seconds=self._lease_seconds)
            if taken is None or taken.study in new:  # a lease that expired during this round
                return
            new.add(taken.study)
            self._held[taken.study] = None
            self._handle(taken)

    def release(self) -> None:
        """Release all leases, so that other workers can continue at once."""
        for study in self.held:
            with suppress(StoreError):
                self._store.release_lease(study, self._worker)
            self._forget(study)

    def _renewed(self, study: str) -> QueueRow | None:
        try:
            return self._store.renew_lease(study, self._worker, seconds=self._lease_seconds)
        except (LeaseLost, NotFound) as error:
            self._log(f"{study}: {error}")
            self._forget(study)
            return None

    def _handle(self, row: QueueRow) -> None:
        """Act on a study; if another worker or driver was faster, the next round sees what it did."""
        try:
            self._act(row)
        except LeaseLost as error:
            self._log(f"{row.study}: {error}")
            self._forget(row.study)
        except StateError:  # the study ended meanwhile
            return
        except (StoreError, ClusterError):
            raise
        except Exception as error:  # noqa: BLE001  # whatever is wrong with one study, the others go on
            self._fail_alone(row, error)
        else:
            self._troubles.pop(row.study, None)

    def _fail_alone(self, row: QueueRow, error: Exception) -> None:
        """Fail a study that the worker cannot handle, unless the cause is gone within a few rounds."""
        self._troubles[row.study] = self._troubles.get(row.study, 0) + 1
        reason = f"the worker cannot handle this study: {type(error).__name__}: {one_line(str(error))}"
        self._log(f"{row.study}: {reason}")
        if self._troubles[row.study] < MOST_TROUBLES:
            return
        try:
            self._settle(row, Settle("failed", sentence(reason)))
        except (StoreError, ClusterError):
            raise
        except Exception as second:  # noqa: BLE001  # nothing can be written of it: it is left alone
            self._log(f"{row.study}: {one_line(str(second))}")
            self._forget(row.study)

    def _act(self, row: QueueRow) -> None:
        read = _read(row)
        row, job = self._last_job(row, read)
        study = self._study(row.study)  # after the job: one that has ended has written all that it wrote
        action = decide(row, job, study, same=study is not None and self._is_same(study, row, read))
        if isinstance(action, Submit) and isinstance(read, str):
            action = Settle("failed", read)
        if isinstance(action, Submit):
            assert isinstance(read, Study)
            self._submit(row, read, action)
        elif isinstance(action, Stop) and action.job not in self._stopping:
            self._log(f"{row.study}: stopping {action.job}")
            self._cluster.stop(action.job)
            self._stopping.add(action.job)
        elif isinstance(action, Settle):
            self._settle(row, action)

    def _last_job(self, row: QueueRow, read: Study | str) -> tuple[QueueRow, Job | None]:
        """Return the last job of a study, with its row; records a job whose worker died before recording it."""
        job = self._cluster.job(row.job) if row.job is not None else None
        if (job is not None and job.living) or isinstance(read, str):
            return row, job
        # IDs of jobs follow from study and attempt, so that the next one can be asked for without knowing of it.
        attempt = row.attempt + (row.job is not None)
        later = self._cluster.job(job_id(read, attempt))
        if later is None:
            return row, job
        return self._store.record_job(
            row.study, self._worker, job=later.id, attempt=attempt, message=row.message
        ), later

    def _study(self, name: str) -> StudyRow | None:
        with suppress(NotFound):
            return self._store.study(name)
        return None

    def _is_same(self, study: StudyRow, row: QueueRow, read: Study | str) -> bool:
        """Whether a study in the store is the one in the queue, or an extension of it, made without the service.

        This release may hash what an older one has queued in another way, and the events of a study have all hashes
        that it had before it was extended.
        """
        hashes = {row.config_hash} if isinstance(read, str) else {row.config_hash, read.hash}
        if study.config_hash in hashes:
            return True
        return any(event.detail.get("config_hash") in hashes for event in self._store.events(study.name))

    def _submit(self, row: QueueRow, study: Study, action: Submit) -> None:
        try:
            job = self._cluster.submit(study, attempt=action.attempt, options=self._options)
        except ClusterError as error:
            self._cluster.capacity()  # raises if the cluster is unreachable; otherwise it has refused the job
            self._wait_for_room(row, str(error))
            return
        self._refused.pop(row.study, None)
        message = f"attempt {action.attempt - row.first_attempt + 1}: {action.reason}" if action.reason else ""
        self._store.record_job(row.study, self._worker, job=job.id, attempt=action.attempt, message=message)
        self._log(f"{row.study}: submitted as {job.id}{f', because {action.reason}' if action.reason else ''}")

    def _wait_for_room(self, row: QueueRow, error: str) -> None:
        if row.study not in self._refused:
            self._refused[row.study] = time.monotonic()
            self._store.set_message(row.study, self._worker, message=f"waits: {error}")
            self._log(f"{row.study}: waits: {error}")
        if time.monotonic() - self._refused[row.study] >= self._refused_seconds:
            self._settle(row, Settle("failed", error))

    def _settle(self, row: QueueRow, action: Settle) -> None:
        """Finish the study in the store first, then in the queue: if this worker dies in between, another does both."""
        study = self._study(row.study)
        if action.state != "complete" and study is not None and study.state not in ENDED_STUDY:
            self._store.finish_study(row.study, action.state, error=action.message or None)
        self._store.finish_queued(row.study, self._worker, action.state, message=action.message)
        self._log(f"{row.study}: {action.state}{f': {action.message}' if action.message else ''}")
        self._forget(row.study)

    def _forget(self, study: str) -> None:
        self._held.pop(study, None)
        self._refused.pop(study, None)
        self._troubles.pop(study, None)


def _read(row: QueueRow) -> Study | str:
    """Return the study of a row, or why this release cannot read it."""
    try:
        return stored_study(row.document, source=f"study {row.study}")
    except StudyError as error:
        reason = one_line(str(error).splitlines()[0])
        return sentence(
            f"this release cannot read the study as it is stored: {reason}; submit it again by another name"
        )
