"""Early stopping: trials that are far behind the best one after as many epochs are stopped."""

from dataclasses import dataclass
from typing import Annotated

from nas_blockout.settings_fields import Range, check
from services.search.early_stopping import EarlyStopping
from services.search_plugins import StoppingRule
from services.trial_record import Trial


@dataclass(frozen=True, slots=True)
class FarBehindSettings:
    """Settings of stopping what is far behind.

    Args:
        after: Epochs after which a trial is compared for the first time; then after every epoch.
        gap: What a trial may lack of the best one, as a share of 1.
    """

    after: Annotated[int, Range(ge=1, le=1000)] = 1
    gap: Annotated[float, Range(ge=0, le=1)] = 0.2

    def __post_init__(self) -> None:
        check(self)


class FarBehind(EarlyStopping):
    """Compares a trial with the best of all trials of its arm, by what they had reached after as many epochs.

    Args:
        settings: Its settings.
        epochs: Of a whole trial.
    """

    def __init__(self, settings: FarBehindSettings, epochs: int) -> None:
        self._settings, self._epochs = settings, epochs
        self._curves: dict[int, tuple[float, ...]] = {}  # by number of the trial

    def rungs(self, number: int) -> tuple[int, ...]:
        """Return the epochs after which a trial is compared."""
        return tuple(range(self._settings.after, self._epochs))

    def update(self, trial: Trial) -> None:
        """Take note of what a trial has reached."""
        self._curves[trial.number] = trial.curve

    def reason_at(self, trial: Trial, rung: int) -> str | None:
        """Return why a trial is stopped after an epoch, or None if it trains on."""
        best = max(curve[rung - 1] for curve in self._curves.values() if len(curve) >= rung)
        if trial.curve[rung - 1] >= best - self._settings.gap:
            return None
        return f"more than {self._settings.gap:g} below {best:.4f}, the best of all trials after as many epochs"


FAR_BEHIND = StoppingRule(FarBehindSettings, FarBehind, summary="trials that are far behind the best one")
