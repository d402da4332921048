"""Which trial comes next: a plan over the arms of a study, and Optuna for what to try.

Its parts: `entries` (trials as the plan sees them), `samplers` (proposals by Optuna), `proposing` (asking until a
proposal is new and allowed), `feasibility` (what constraints allow), `asha` (who is stopped early), `winning` (who is
retrained), `plan`; and, for what is said afterwards, `importance` (what decided) and `fronts` (what was traded).
"""

from services.search.entries import RETRAIN, SEARCH, TERMINAL, Entry, Proposal, derived_seed
from services.search.plan import MOST_FAILURES_IN_A_ROW, Plan
from services.search.samplers import ask

__all__ = [
    "MOST_FAILURES_IN_A_ROW",
    "RETRAIN",
    "SEARCH",
    "TERMINAL",
    "Entry",
    "Plan",
    "Proposal",
    "ask",
    "derived_seed",
]
