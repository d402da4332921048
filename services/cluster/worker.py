"""The worker: runs one trial at a time, epoch by epoch, and writes checkpoints with its reports and inside long epochs.

A worker reads its task and the data, writes its checkpoint and its model, and returns reports. It holds no credentials
and opens no database. It works in the same way in a Ray actor and in a plain process.
"""

import gc
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from nas_blockout.devices import Usage, UsageMeter, keep_freed_memory
from nas_blockout.experiment import Experiment, Run, SavingRun, Snapshot
from nas_blockout.training import ALONE, EpochRecord, Ranks
from services.cluster.checkpoint_writer import CheckpointWriter
from services.cluster.checkpoints import Continuation, read_checkpoint
from services.cluster.rank_actors import RankActors, RankError, RankLostError
from services.cluster.shared_data import SharedData, SplitsByKey, splits_of
from services.cluster.tasks import Report, Task
from services.cluster.trial_results import TrialResults
from services.cluster.worker_errors import describe_error, ends_the_process
from services.files.remote import reading

OTHERS_SECONDS = 10.0  # how long an error waits to be explained by another rank, whose end may be seen later
REPORT_SECONDS = 2.0  # between two reports, besides one epoch


class Worker:
    """Runs tasks one after another and keeps the data in memory between them.

    A trial that fails leaves nothing behind, and the next one runs in the same process; only an error of the
    accelerator ends the worker, as the report with its failure says: its process can use the device no more.

    Args:
        report_seconds: How long to train between two reports; 0 reports every epoch.
        others: The other ranks of trials that several processes train; None if there are no such trials.
        data: Data that need not be loaded, since all workers of the machine share it.
    """

    def __init__(
        self,
        report_seconds: float = REPORT_SECONDS,
        others: RankActors | None = None,
        *,
        data: SharedData | None = None,
    ) -> None:
        self._report_seconds = report_seconds
        self._others = others
        self._data: SplitsByKey = {} if data is None else {(data.settings, data.data_root): data.splits()}
        self._results = TrialResults()
        self._task: Task | None = None
        self._run: Run | None = None
        self._meter: UsageMeter | None = None
        self._writer: CheckpointWriter | None = None
        self._unreported: list[EpochRecord] = []
        self._notes: tuple[str, ...] = ()
        self._error: str | None = None
        self._ends = False

    def start(self, task: Task) -> None:
        """Start a trial, or continue it from its checkpoint if there is one.

        Raises:
            RuntimeError: An accelerator error has ended this worker.
        """
        if self._ends:
            raise RuntimeError(f"the accelerator failed in process {os.getpid()}: run trial {task.trial} in a new one")
        self._finish_writing()  # of a trial that was stopped
        self._writer = writer = CheckpointWriter(task.checkpoint, task.experiment, device=task.device)
        torch.set_num_threads(task.threads)
        keep_freed_memory()
        self._task, self._run, self._error, self._unreported = task, None, None, []
        self._notes = ()
        self._stop_metering()  # of a trial that the driver stopped
        try:
            experiment = Experiment.from_json(task.experiment)
            with reading(task.checkpoint) as path:
                start = read_checkpoint(path, task.experiment, device=task.device)
            self._notes = start.notes
            self._meter = UsageMeter(task.device)
            splits, placement = splits_of(experiment.data, task.data_root, self._data), task.placement()
            self._run = Run(
                *(experiment, splits),
                device=task.device,
                placement=placement,
                start=start.snapshot,
                saving=SavingRun(lambda: writer.due_within, self._write_within),
                ranks=self._ranks(task),
            )
            # The worker before may have died before its last report arrived; the driver ignores what it has already.
            self._unreported = list(start.snapshot.records) if start.snapshot else []
        except Exception as error:  # noqa: BLE001  # the trial fails, the worker continues with the next one
            self._fail(error)

    def step(self) -> Report:
        """Train until the next report: the time is up, a rung is reached or the trial has ended.

        At a rung, where the driver may stop the trial, the checkpoint is written before the report is returned. It is
        so after other epochs too if it is quick to write. Otherwise it is written while the training goes on: if the
        worker dies meanwhile, epochs that were reported are trained again, with the same numbers, which the store has.

        Raises:
            RankLostError: The process of another rank has died: as with this process, the trial is to begin again.
        """
        assert self._task is not None, "start a task first"
        began, trained = time.monotonic(), False
        try:
            # After a restart the checkpoint may end at a rung: the driver decides before another epoch is trained.
            while self._error is None and not self._at_rung():
                if not self._one_epoch():
                    return self._report(result=self._result())
                trained = True
                if time.monotonic() - began >= self._report_seconds:
                    break
            if trained and self._error is None:
                self._write_checkpoint()
        except Exception as error:  # noqa: BLE001  # reported as the failure of the trial
            self._fail(error)
        if self._error is not None:
            self._finish_writing()
            self._free()
        return self._report(failure=self._error)

    def _write_checkpoint(self) -> None:
        assert self._run is not None
        assert self._writer is not None
        at_rung = self._at_rung()
        if at_rung or self._writer.due:
            self._writer.write(Continuation(self._run.snapshot(), self._notes))
        if at_rung:
            self._writer.wait()

    def _write_within(self, snapshot: Snapshot) -> None:
        assert self._writer is not None
        self._writer.write(Continuation(snapshot, self._notes))

    def _finish_writing(self) -> None:
        """Wait for a checkpoint that nobody needs any longer, whatever becomes of it."""
        if self._writer is not None:
            with suppress(Exception):
                self._writer.wait()

    def leave(self) -> None:
        """End the processes of the other ranks, if there are any."""
        if self._others is not None:
            self._others.leave()
            self._others.end()

    def _ranks(self, task: Task) -> Ranks:
        return ALONE if self._others is None or task.ranks == 1 else self._others.begin(task)

    def _fail(self, error: Exception) -> None:
        """Take note of an error; if that of another rank is behind it, of this one in its place.

        Raises:
            RankLostError: The process of another rank has died.
        """
        elsewhere: Exception | None = error if isinstance(error, RankError | RankLostError) else None
        if self._others is not None:
            elsewhere = elsewhere or self._others.failure(wait_seconds=OTHERS_SECONDS)
            self._others.end()
        if isinstance(elsewhere, RankLostError):
            raise elsewhere from error
        self._error = str(elsewhere) if elsewhere else describe_error(error)
        self._ends = ends_the_process(error)

    def _result(self) -> dict[str, Any]:
        assert self._run is not None
        assert self._task is not None
        usage = self._stop_metering()
        result = self._results.of(self._run, self._task, usage=usage, notes=self._notes)
        self._finish_writing()  # before the report, with which the driver removes the checkpoint
        return result

    def _stop_metering(self) -> Usage | None:
        meter, self._meter = self._meter, None
        if meter is None:
            return None
        meter.stop()
        return meter.read()

    def _free(self) -> None:
        """Give the memory of a trial that failed back, to the device too: it may have failed for want of it."""
        self._run = None
        self._meter = None if self._ends else self._meter
        self._stop_metering()
        gc.collect()  # the frames that an error has passed through refer to each other
        if torch.cuda.is_initialized() and not self._ends:
            torch.cuda.empty_cache()

    def _at_rung(self) -> bool:
        """Whether the driver must decide whether to stop the trial before another epoch is trained."""
        assert self._run is not None
        assert self._task is not None
        return bool(self._unreported) and len(self._run.records) in self._task.rungs

    def _one_epoch(self) -> bool:
        assert self._run is not None
        record = next(self._run, None)
        if record is None:
            return False
        self._unreported.append(replace(record, checkpoint=None))  # with it a stage's weights would stay as long
        self._error = record.failure
        return True

    def _report(self, *, failure: str | None = None, result: Mapping[str, Any] | None = None) -> Report:
        assert self._task is not None
        records, self._unreported = tuple(record.to_json() for record in self._unreported), []
        worker = f"{os.uname().nodename}:{os.getpid()}"
        return Report(self._task.trial, worker, records, failure, result, ends_worker=self._ends)
