"""The trials of one phase of an arm, with what is asked about them at every report kept up to date.

A study may have a hundred thousand trials: whatever looked through all of them at each report, or at each proposal,
would in the end take most of the driver's time. Only `in_order` does.
"""

from bisect import insort
from collections.abc import Sequence

from services.budget.limits import FAILURES_IN_A_ROW
from services.budget.tally import Tally
from services.search.constraints import could_win
from services.search.early_stopping import EarlyStopping
from services.search.sampler_history import SamplerHistory
from services.search.selection import Winner
from services.search.stopping_rules import early_stopping
from services.study_config.search_options import Rules
from services.trial_record import Trial

# One sequence of points, and one population: divided between brackets, a search would fill neither.
_OF_ALL_BRACKETS = frozenset({"qmc", "evolution"})


class ArmTrials:
    """Trials by number.

    Args:
        rules: How the arm searches.

    Attributes:
        tally: Counts of states, and usage.
        tried: Number of proposals, infeasible ones included.
        history: What samplers learn from.
        stopping: Early stopping; None without it.
    """

    def __init__(self, rules: Rules) -> None:
        self.tally = Tally()
        self.tried = 0
        self.history = SamplerHistory(rules)
        self.stopping: EarlyStopping | None = early_stopping(rules.pruner) if rules.pruner else None
        self._by_bracket: dict[int, SamplerHistory] = {}  # where trials are in brackets
        self._rules = rules
        self._trials: dict[int, Trial] = {}
        self._numbers: list[int] = []  # rising
        self._same: dict[str, list[int]] = {}  # numbers by hash of the architecture, rising
        self._exhausted = 0
        self._winner: Winner | None = Winner(rules.selection)  # None: to be found again

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def in_order(self) -> list[Trial]:
        """Return all trials in the order of their numbers; takes time in proportion to them."""
        return [self._trials[number] for number in self._numbers]

    def update(self, trial: Trial) -> None:
        """Add a trial, or replace it by its new state."""
        before = self._trials.get(trial.number)
        if before is trial:
            return
        if before is None:
            insort(self._numbers, trial.number)
        else:
            self._remove(before)
        self._trials[trial.number] = trial
        self.tally.add(trial)
        self.tried += trial.proposals
        self._exhausted += trial.search_exhausted is not None
        if trial.architecture_hash:
            insort(self._same.setdefault(trial.architecture_hash, []), trial.number)
        if self._winner is not None and could_win(trial, self._rules.constraints):
            self._winner.add(trial)
        self.history.update(trial)
        if self.stopping is not None:
            self.stopping.update(trial)
            if (bracket := self.stopping.bracket(trial.number)) is not None:
                self._of_bracket(bracket).update(trial)

    def told_to(self, searcher: str, number: int) -> SamplerHistory:
        """Return the trials from which a searcher learns for a proposal: with brackets, those of the same bracket.

        Args:
            searcher: Name of the search algorithm.
            number: Of the trial that is proposed.
        """
        bracket = self.stopping.bracket(number) if self.stopping is not None else None
        return self.history if bracket is None or searcher in _OF_ALL_BRACKETS else self._of_bracket(bracket)

    @property
    def winner(self) -> Trial | None:
        """The complete search trial to retrain, see `select`."""
        if self._winner is None:
            self._winner = Winner(self._rules.selection)
            for trial in self.in_order():
                if could_win(trial, self._rules.constraints):
                    self._winner.add(trial)
        return self._winner.trial

    @property
    def exhausted(self) -> bool:
        """Whether the last trials all failed, or no network within the constraints was found."""
        if self._exhausted:
            return True
        latest = [self._trials[number].state for number in self._numbers[-FAILURES_IN_A_ROW:]]
        return len(latest) == FAILURES_IN_A_ROW and set(latest) == {"failed"}

    def same(self, architecture_hash: str | None) -> Sequence[int]:
        """Return the numbers of the trials with an architecture, rising."""
        return self._same.get(architecture_hash, ()) if architecture_hash else ()

    def _of_bracket(self, bracket: int) -> SamplerHistory:
        return self._by_bracket.setdefault(bracket, SamplerHistory(self._rules))

    def _remove(self, trial: Trial) -> None:
        self.tally.remove(trial)
        self.tried -= trial.proposals
        self._exhausted -= trial.search_exhausted is not None
        if trial.architecture_hash:
            self._same[trial.architecture_hash].remove(trial.number)
        if could_win(trial, self._rules.constraints):  # only in a replay: in the store the end of a trial is final
            self._winner = None
