"""What the trainings of an arm took of a machine, from what their workers recorded."""

from typing import Any

from services.analysis.usage import ArmUsage, usage_of
from services.finalize.trial_table import row_of
from services.trial_record import Trial

GPU = {"device": "NVIDIA H100", "device_bytes": 2_000, "host_bytes": 9_000, "utilization": 0.5}


def trial_of(usage: dict[str, Any] | None, *, passes: int = 1000, seconds: float = 2.0) -> Trial:
    result = {"usage": usage} if usage else {}
    return Trial("a", "search", 0, 0, "complete", sample_passes=passes, seconds=seconds, result=result)


def test_an_arm_is_as_fast_as_its_median_and_as_large_as_its_largest() -> None:
    other = {**GPU, "device_bytes": 5_000, "host_bytes": 8_000, "utilization": 0.75}
    busy = {**GPU, "utilization": 0.25}
    trials = [trial_of(GPU), trial_of(other, seconds=1.0), trial_of(busy, seconds=100.0)]
    assert usage_of(trials) == ArmUsage(
        devices=["NVIDIA H100"],
        images_per_second=500.0,
        device_bytes=5_000,
        host_bytes=9_000,
        utilization=0.5,
    )


def test_without_an_accelerator_there_is_none_of_its_figures() -> None:
    usage = usage_of([trial_of({"device": "cpu", "device_bytes": None, "host_bytes": 7, "utilization": None})])
    assert usage is not None
    assert (usage.device_bytes, usage.utilization, usage.host_bytes) == (None, None, 7)


def test_trials_that_recorded_nothing_leave_it_unknown() -> None:
    assert usage_of([trial_of(None), trial_of(None)]) is None
    assert usage_of([]) is None


def test_the_table_of_trials_has_it() -> None:
    row = row_of(trial_of(GPU))
    assert {key: row[key] for key in ("images_per_second", *GPU)} == {"images_per_second": 500.0, **GPU}
    assert row_of(trial_of(None, seconds=0.0))["images_per_second"] is None
