"""What the trainings of an arm took of a machine: images a second, memory, and how busy an accelerator was."""

from collections.abc import Sequence
from statistics import fmean, median

from pydantic import Field

from services.analysis.seed_metrics import Amount, Count, Share, Strict
from services.trial_record import Trial


class ArmUsage(Strict):
    """What the trainings of an arm used; of several at one time each is measured alone."""

    devices: list[str] = Field(description="Names of the devices that its trainings ran on.")
    images_per_second: Amount = Field(description="Sample passes a second of training, the median over trainings.")
    device_bytes: Count | None = Field(description="Most memory that tensors of one training held on an accelerator.")
    host_bytes: Count = Field(description="Most memory that a worker process had held by the end of a training.")
    utilization: Share | None = Field(description="Mean share of the time in which the accelerator computed.")


def usage_of(trials: Sequence[Trial]) -> ArmUsage | None:
    """Return what the complete trials of an arm used; None for studies that were run before it was measured."""
    measured = [trial for trial in trials if trial.usage]
    if not measured:
        return None
    usages = [trial.usage for trial in measured]
    held = [usage["device_bytes"] for usage in usages if usage["device_bytes"] is not None]
    busy = [usage["utilization"] for usage in usages if usage["utilization"] is not None]
    return ArmUsage(
        devices=sorted({usage["device"] for usage in usages}),
        images_per_second=median(trial.images_per_second or 0.0 for trial in measured),
        device_bytes=max(held, default=None),
        host_bytes=max(usage["host_bytes"] for usage in usages),
        utilization=fmean(busy) if busy else None,
    )
