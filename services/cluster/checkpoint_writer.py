"""Checkpoints in the background: training goes on while one is written, and writing takes a small share of the time."""

import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from services.cluster.checkpoints import Continuation, state_of, write_state
from services.files.remote import writing

WRITING_SHARE = 0.05  # of the time, at most; but a checkpoint is never older than
LONGEST_SECONDS = 600.0
WITHIN_SECONDS = 60.0  # between one and the next inside an epoch, at least
QUICK_SECONDS = 0.1  # is that share of the two seconds between reports: what is quicker is written with every report


class CheckpointWriter:
    """Writes the checkpoints of one trial, one at a time, each whole or not at all.

    A checkpoint that is quick to write is written before `write` returns, and so is the first, from which it is known
    how long one takes. Others are copied to the memory of the machine, and written by a thread.

    Args:
        place: Path or URL of the checkpoint.
        experiment: Whose it is, as plain JSON types.
        device: Where the experiment runs.
        now: Clock, in seconds.
    """

    def __init__(
        self,
        place: str,
        experiment: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._experiment = experiment
        self._device = device
        self._now = now
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._began = now()  # of the latest, before the first the trial
        self._seconds: float | None = None  # that copying and writing the latest took

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint, and the one before has been written.

        Raises:
            Exception: The one before could not be written.
        """
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        if self._seconds is None or self._seconds <= QUICK_SECONDS:
            return True
        return self._now() - self._began >= min(self._seconds / WRITING_SHARE, LONGEST_SECONDS)

    @property
    def due_within(self) -> bool:
        """Whether it is time for a checkpoint inside an epoch; asked after every step, and as quickly answered.

        Raises:
            Exception: The one before could not be written.
        """
        return self._now() - self._began >= WITHIN_SECONDS and self.due

    def write(self, given: Continuation) -> None:
        """Write a checkpoint after the one before, which takes its place; what it refers to may change afterwards.

        Args:
            given: With a snapshot.

        Raises:
            Exception: This one, or the one before, could not be written.
        """
        self.wait()
        self._began = self._now()
        state = on_machine(state_of(given, self._experiment, device=self._device))
        self._thread = Thread(target=self._write, args=(state,), name="checkpoint")
        self._thread.start()
        if self._seconds is None or self._seconds <= QUICK_SECONDS:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            Exception: The checkpoint could not be written; raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, state: Mapping[str, Any]) -> None:
        try:
            with writing(self._place) as path:
                write_state(state, path)
        except Exception as error:  # noqa: BLE001  # raised where the training can report it
            self._error = error
        self._seconds = self._now() - self._began


def on_machine(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with copies of its tensors in the memory of the machine; it is waited for a device once."""
    copied: dict[str, Any] = _copied(state)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copied


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        held = value.detach()
        return held.clone() if held.device.type == "cpu" else held.to("cpu", non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value
