"""Results as data frames of pandas: a row an arm, a row a trial, a row a phase of an estimate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nas_blockout.interactive.html_text import heading, table
from services.analysis.comparison import ArmResult, ComparisonDocument
from services.analysis.verdict import arm_verdict
from services.estimate import Estimate
from services.finalize.trial_table import row_of
from services.trial_record import Trial


def arms_frame(document: ComparisonDocument) -> pd.DataFrame:
    """Return the results of a study, a row an arm, the best first if they are ranked.

    Accuracies are means over seeds in [0, 1], ``test_low`` and ``test_high`` the ends of their 95% interval; the costs
    are those of the exported model.
    """
    names = document.ranking or list(document.arms)
    rows = [_row(name, document.arms[name], document) for name in names]
    return pd.DataFrame(rows).set_index("arm")


def _row(name: str, arm: ArmResult, document: ComparisonDocument) -> dict[str, Any]:
    test, validation = arm.test_accuracy, arm.validation_accuracy
    low, high = test.ci95 if test is not None and test.ci95 is not None else (None, None)
    return {
        "arm": name,
        "role": arm.role,
        "test_accuracy": test.mean if test is not None else None,
        "test_low": low,
        "test_high": high,
        "validation_accuracy": validation.mean if validation is not None else None,
        "seeds": len(test.per_seed) if test is not None else 0,
        "macs": arm.macs,
        "parameters": arm.parameters,
        "latency_ms": arm.latency_ms.batch_1 if arm.latency_ms is not None else None,
        "sample_passes": arm.cost.sample_passes,
        "seconds": arm.cost.seconds,
        "trials": arm.trials,
        "failed": arm.failed,
        "verdict": arm_verdict(document, name),
    }


def trials_frame(trials: Iterable[Trial]) -> pd.DataFrame:
    """Return the trials of a study, a row a trial, with the columns of ``trials.csv``."""
    rows = [row_of(trial) for trial in trials]
    return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()


@dataclass(frozen=True, slots=True)
class EstimatedCost:
    """What a study will cost.

    Args:
        value: The estimate, with its notes.
    """

    value: Estimate

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each phase of each arm: trials, sample passes, seconds of training."""
        return pd.DataFrame(self._rows).set_index(["arm", "phase"])

    @property
    def _rows(self) -> list[Mapping[str, Any]]:
        return [
            {
                "arm": arm,
                "phase": phase,
                "trials": cost.trials,
                "sample_passes": cost.sample_passes,
                "seconds": cost.seconds,
            }
            for arm, phases in self.value.phases.items()
            for phase, cost in phases.items()
        ]

    def __str__(self) -> str:
        total = self.value.total
        return (
            f"study {self.value.study}: {total.trials} trials, {total.sample_passes:,} sample passes, about "
            f"{self.value.wall_seconds:.0f} s, {self.value.disk_bytes / 1e6:,.1f} MB"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_html_(self) -> str:
        """Return the estimate as HTML."""
        rows = [
            [row["arm"], row["phase"], row["trials"], row["sample_passes"], round(row["seconds"])] for row in self._rows
        ]
        return heading(str(self), details=self.value.notes) + table(
            ("arm", "phase", "trials", "sample passes", "seconds"), rows
        )
