"""One worker: it leases the studies that are next, and carries out what `decide` says about each."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from nas_blockout.plugins.choices import Allows, allowing
from services.cluster import ClusterError
from services.cluster.jobs import Job, job_id
from services.dispatch.decision import Requeue, Settle, Stop, Submit, decide, sentence
from services.dispatch.fair_share import Policy
from services.dispatch.owner_limits import OwnerLimits
from services.dispatch.planning import HasNodes, Planner, changed
from services.plugin_records import PluginRefused
from services.store import LeaseLost, NotFound, QueueRow, QueueSummary, StateError, Store, StoreError, StudyRow, Waiting
from services.store.records import ENDED_STUDY
from services.study_config.errors import StudyError, one_line
from services.study_config.resolution import stored_study
from services.study_config.resolved_study import Study

REFUSED_SECONDS = 600.0
RETRY_SECONDS = 10.0  # until a job that the cluster has refused is submitted again
MOST_TROUBLES = 3
_LOG = logging.getLogger(__name__)

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """That a cluster refuses a job: since when, when to try again, both monotonic, and why."""

    since: float
    retry_at: float
    reason: str


class Cluster(HasNodes, Protocol):
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
    """Runs the studies that it has leased, and decides which of those that wait are next.

    Args:
        store: Holds queue and studies.
        cluster: Runs the jobs.
        worker: Unique name of this worker.
        lease_seconds: How long a lease lasts unless it is renewed.
        planner: Says which studies are next; one without limits on owners if omitted.
        refused_seconds: How long a study waits of which the cluster has no room for a single trial, or refuses the job.
        options: Words that the command of every job ends with: what it must write to, see `destination_options`.
        allows: Whether a plug-in may be imported to read a study that names it; none may if omitted. It was asked when
            the study was submitted, but the operator may have changed it since.
        log: Called with one line for each change.
    """

    def __init__(  # noqa: PLR0913  # one keyword a setting
        self,
        store: Store,
        cluster: Cluster,
        *,
        worker: str,
        lease_seconds: float = 30.0,
        planner: Planner | None = None,
        refused_seconds: float = REFUSED_SECONDS,
        options: Sequence[str] = (),
        allows: Allows = lambda origin: False,
        log: Log = _LOG.info,
    ) -> None:
        self._store, self._cluster, self._worker = store, cluster, worker
        self._lease_seconds, self._refused_seconds = lease_seconds, refused_seconds
        self._planner = planner or Planner(store, cluster, Policy(), OwnerLimits())
        self._options, self._allows = tuple(options), allows
        self._log = log
        self._held: dict[str, None] = {}  # a set that keeps its order
        self._refused: dict[str, Refusal] = {}  # by study, that the cluster refuses its job
        self._troubles: dict[str, int] = {}  # by study, the rounds in succession that ended in an unexpected error
        self._stopping: set[str] = set()  # jobs that were asked to stop, which is done once

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the leased studies."""
        return tuple(self._held)

    def round(self) -> None:
        """Renew all leases, act on each study, take over studies of workers that died, and start those that are next.

        Raises:
            StoreUnreachable: The database is unreachable; leases may expire, and other workers take over.
            ClusterError: The cluster is unreachable; leases are kept.
        """
        with allowing(self._allows):  # wherever a study is read, to plan as well as to start it
            self._round()

    def _round(self) -> None:
        # All leases first: acting on a study takes time, in which those of the others could expire.
        before = self.held
        for row in [row for study in before if (row := self._renewed(study)) is not None]:
            self._handle(row)
        now, rows = self._store.open_queue()
        for each in rows:
            expired = each.lease_until is None or each.lease_until < now
            if each.state != "queued" and expired and each.study not in before:  # of a worker that has died
                self._take(each.study)
        if any(row.state == "queued" or row.state == "running" for row in rows):
            with self._store.scheduling() as alone:
                if alone:
                    self._schedule()

    def _take(self, study: str, *, width: int | None = None) -> None:
        """Lease a study, unless another worker is faster, and act on it."""
        taken = self._store.acquire_lease(self._worker, seconds=self._lease_seconds, study=study, width=width)
        if taken is not None:
            self._held[study] = None
            self._handle(taken)

    def _schedule(self) -> None:
        """Start the studies that are next, ask others to make room, and say of the rest why they wait."""
        now, rows = self._store.open_queue()
        planned = self._planner.plan(rows, now=now, held_back=self._held_back(rows))
        by_name = {row.study: row for row in rows}
        for study, reason in planned.yields.items():
            if by_name[study].yields is None:
                self._store.request_yield(study, reason=reason)
                self._log(f"{study}: {reason}")
        self._say_of_waiting(by_name, planned.waiting, now=now)
        for study, width in planned.starts.items():
            self._take(study, width=width)

    def _held_back(self, rows: Iterable[QueueSummary]) -> dict[str, str]:
        """Return, by study, why the cluster has refused its job a moment ago; forget what is not queued any more."""
        queued = {row.study for row in rows if row.state == "queued"}
        self._refused = {study: refusal for study, refusal in self._refused.items() if study in queued}
        moment = time.monotonic()
        return {study: each.reason for study, each in self._refused.items() if moment < each.retry_at}

    def _say_of_waiting(
        self, rows: Mapping[str, QueueSummary], waiting: Mapping[str, Waiting], *, now: datetime
    ) -> None:
        said = {study: each for study, each in waiting.items() if changed(rows[study], each, now=now)}
        self._store.set_waiting(said)
        for study, each in said.items():
            if each.message != rows[study].message and each.position is None:
                self._log(f"{study}: {each.message}")
        for study, each in waiting.items():
            aside = each.set_aside_at
            if aside is not None and (now - aside).total_seconds() >= self._refused_seconds:
                self._give_up(study, each.message.removeprefix("set aside: "))

    def _give_up(self, study: str, reason: str) -> None:
        """Fail a study that waits."""
        row = self._store.acquire_lease(self._worker, seconds=self._lease_seconds, study=study)
        if row is not None:
            self._held[study] = None
            self._settle(row, Settle("failed", reason))

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
        elif isinstance(action, Requeue):
            self._store.requeue(row.study, self._worker, message=action.message)
            self._log(f"{row.study}: waits again; it {action.message}")
            self._forget(row.study)

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
        options = (*self._options, *(("--workers", str(row.width)) if row.width is not None else ()))
        try:
            job = self._cluster.submit(study, attempt=action.attempt, options=options)
        except ClusterError as error:
            self._cluster.capacity()  # raises if the cluster is unreachable; otherwise it has refused the job
            self._refuse(row, str(error))
            return
        self._refused.pop(row.study, None)
        message = f"attempt {action.attempt - row.first_attempt + 1}: {action.reason}" if action.reason else ""
        self._store.record_job(row.study, self._worker, job=job.id, attempt=action.attempt, message=message)
        self._log(f"{row.study}: submitted as {job.id}{f', because {action.reason}' if action.reason else ''}")

    def _refuse(self, row: QueueRow, error: str) -> None:
        """Let a study wait whose job the cluster has refused; it may have more machines soon."""
        now = time.monotonic()
        since = self._refused[row.study].since if row.study in self._refused else now
        if now - since >= self._refused_seconds:
            self._settle(row, Settle("failed", error))
            return
        self._store.requeue(row.study, self._worker, message=f"waits: {error}")
        self._log(f"{row.study}: waits: {error}")
        self._forget(row.study)
        self._refused[row.study] = Refusal(since, now + RETRY_SECONDS, f"waits: {error}")

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
        self._troubles.pop(study, None)


def _read(row: QueueRow) -> Study | str:
    """Return the study of a row, or why this release cannot read it."""
    try:
        return stored_study(row.document, source=f"study {row.study}")
    except StudyError as error:
        reason = one_line(str(error).splitlines()[0])
        if isinstance(error.__cause__, PluginRefused):
            return sentence(
                f"{reason}; NAS_BLOCKOUT_PLUGINS of the worker must allow it: ask the operator, then `resume` the study"
            )
        return sentence(
            f"this release cannot read the study as it is stored: {reason}; submit it again by another name"
        )
