"""What is sent to a worker, and what comes back: tasks and reports, as plain JSON types."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nas_blockout.data import Placement
from nas_blockout.data.placement import DECODERS, MEMORY_SHARE, ImageCache


@dataclass(frozen=True, slots=True)
class Task:
    """One trial as it is sent to a worker: what to run, and where its files go.

    Args:
        trial: Identity of the trial in the store.
        experiment: What to run, as plain JSON types.
        evaluates_test: Whether the trained model is evaluated, once, on the test images.
        checkpoint: File from which an interrupted trial continues; the worker writes it with every report, the driver
            removes it. A path, or a URL if workers on several machines share storage.
        model: File for the trained weights, a path or a URL, or None to save none.
        data_root: Folder of the data sets, or None for the default locations.
        threads: Number of threads used for training.
        device: Device used for training.
        ranks: Processes that train the trial together.
        rungs: Epochs after which to report before training on: the driver may stop the trial there.
        measures_latency: Whether the time of a forward pass of the trained network is measured.
        robustness: Corrupted test images on which the trained model is evaluated as well: ``images``, ``severities``,
            ``seed``; None for no such evaluation.
        calibrates: Whether a temperature is fitted on the validation images before the model is evaluated on the test
            images, so that their one evaluation tells how good the calibrated probabilities are.
        data_memory_share: Part of the free memory of an accelerator that the images of a split may take.
        image_cache: Whether image files that do not fit into memory are decoded once, into the cache of the data root.
    """

    trial: int
    experiment: Mapping[str, Any]
    evaluates_test: bool
    checkpoint: str
    model: str | None
    data_root: str | None = None
    threads: int = 1
    device: str = "cpu"
    ranks: int = 1
    rungs: tuple[int, ...] = ()
    measures_latency: bool = False
    robustness: Mapping[str, Any] | None = None
    calibrates: bool = False
    data_memory_share: float = MEMORY_SHARE
    image_cache: ImageCache = "none"

    def placement(self) -> Placement:
        """Return where the images of the trial are kept."""
        decoders = max(DECODERS, self.threads)  # the process that trains waits for them most of the time
        return Placement(self.device, self.data_memory_share, decoders=decoders, image_cache=self.image_cache)

    def to_json(self) -> dict[str, Any]:
        """Return the task as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker reports after some epochs.

    Args:
        trial: Identity of the trial.
        worker: Process that ran it.
        records: Epoch records; after a restart, those of the checkpoint are reported again.
        failure: Why the trial failed, or None.
        result: Result of the trial, in the last report of one that succeeded.
        ends_worker: Whether the process can run no further task, as after an error of the accelerator.
    """

    trial: int
    worker: str
    records: tuple[Mapping[str, Any], ...]
    failure: str | None = None
    result: Mapping[str, Any] | None = None
    ends_worker: bool = False

    @property
    def done(self) -> bool:
        """Whether this is the last report of the trial."""
        return self.failure is not None or self.result is not None

    def to_text(self) -> str:
        """Return the report as JSON text, since Tune would flatten a dictionary."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Report":
        """Read a report back."""
        document = json.loads(text)
        return cls(**{**document, "records": tuple(document["records"])})
