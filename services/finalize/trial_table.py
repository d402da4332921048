"""Trials as rows of ``trials.csv``, which the API and ``nas-blockout show`` list as well."""

from typing import Any

from services.trial_record import Trial

_RESULTS = (
    "validation_accuracy",
    "validation_balanced_accuracy",
    "validation_loss",
    "test_accuracy",
    "test_balanced_accuracy",
    "test_loss",
    "parameters",
    "macs",
    "threshold",
    "latency_ms",
    "stopped_after",
    "architecture_hash",
)
_USAGE = ("device", "device_bytes", "host_bytes", "utilization")


def row_of(trial: Trial) -> dict[str, Any]:
    """Return a trial as one row: identity, cost, result, then its parameters."""
    rate = trial.images_per_second
    return {
        "trial": trial.id,
        "arm": trial.arm,
        "phase": trial.phase,
        "number": trial.number,
        "seed": trial.seed,
        "fold": trial.fold,
        "state": trial.state,
        "reason": trial.reason,
        "replicate_of": trial.replicate_of,
        "infeasible": len(trial.infeasible),
        "sample_passes": trial.sample_passes,
        "seconds": round(trial.seconds, 3),
        "images_per_second": rate and round(rate, 1),
        **{key: trial.usage.get(key) for key in _USAGE},
        **{key: trial.outcome.get(key) for key in _RESULTS},
        **{f"gap.{key}": value for key, value in (trial.outcome.get("gap") or {}).items()},
        **{f"param.{key}": value for key, value in trial.values.items()},
    }
