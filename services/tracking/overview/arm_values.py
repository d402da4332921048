"""What MLflow is told of an arm: the numbers of its comparison, its verdict, and the mean curves of its seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from services.store import EpochRow
from services.tracking.run_values import CURVES, is_number, thinned

_DIGITS = 4  # of accuracies, as the report has them in percent; of milliseconds and seconds more than can be measured
NOTE_CHARACTERS = 4000  # MLflow takes 8,000 in a tag


@dataclass(frozen=True, slots=True)
class ArmFinding:
    """What a finished study says of one arm, beside its numbers.

    Args:
        verdict: In a few words, for a column of a table.
        retrained: IDs of its retrained trials, one a seed; its curves are the means of theirs.
        winner: ID of that one whose model is exported, or None.
    """

    verdict: str
    retrained: tuple[int, ...] = ()
    winner: int | None = None


def numbers_of(arm: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an arm, under the names that those of its trials have, so that they share a column.

    Args:
        arm: Its part of ``comparison.json``. Accuracies are means over seeds; parameters and MACs those of the exported
            model; costs those of all trials, the failed ones too.
    """
    test, validation = arm.get("test_accuracy") or {}, arm.get("validation_accuracy") or {}
    low, high = test.get("ci95") or (None, None)
    cost, latency = arm.get("cost") or {}, arm.get("latency_ms") or {}
    phases = [cost.get(phase) or {} for phase in ("search", "retrain")]
    numbers = {
        "test/accuracy": test.get("mean"),
        "test/accuracy_low": low,
        "test/accuracy_high": high,
        "test/balanced_accuracy": (arm.get("test_balanced_accuracy") or {}).get("mean"),
        "best/val_accuracy": validation.get("mean"),
        "model/macs": arm.get("macs"),
        "model/parameters": arm.get("parameters"),
        "latency/ms_batch_1": latency.get("batch_1"),
        "arm/sample_passes": sum(phase.get("sample_passes") or 0 for phase in phases) if cost else None,
        "arm/seconds": sum(phase.get("seconds") or 0.0 for phase in phases) if cost else None,
    }
    # MLflow shows every digit that there is.
    return {key: round(float(value), _DIGITS) for key, value in numbers.items() if is_number(value)}


def mean_curves(seeds: Sequence[Sequence[EpochRow]]) -> Iterator[tuple[str, int, float]]:
    """Yield the curves of an arm, as metric, epoch and mean over the seeds, at the epochs that all of them have."""
    if not seeds or not all(seeds):
        return
    shared = set.intersection(*({row.epoch for row in rows} for rows in seeds))
    by_epoch = [{row.epoch: row for row in rows} for rows in seeds]
    for row in thinned([row for row in seeds[0] if row.epoch in shared]):
        for key, name in CURVES.items():
            values = [rows[row.epoch].metrics.get(key) for rows in by_epoch]
            numbers = [value for value in values if is_number(value)]
            if len(numbers) == len(values):
                yield name, row.epoch, fmean(numbers)


def note_of(name: str, description: str, *, verdict: str = "") -> str:
    """Return what people read of an arm on the page of its run, in Markdown."""
    parts = [f"Arm `{name}`" + (f": {description}" if description else ""), verdict]
    return "\n\n".join(part for part in parts if part)[:NOTE_CHARACTERS]
