"""Which trial comes next: a plan over the arms of a study, and Optuna for what to try.

Its parts: `trial_state` (trials as the scheduler sees them), `samplers` (proposals by Optuna), `proposals` (asking
until one is new and allowed), `constraints` (what is allowed), `asha` (which trials are stopped early), `selection`
(which trial is retrained) and `scheduler`, which decides what runs next.
"""

from services.search.samplers import ask
from services.search.scheduler import MOST_FAILURES_IN_A_ROW, Plan
from services.search.trial_state import RETRAIN, SEARCH, TERMINAL, Entry, Proposal, derived_seed

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
