"""What a study will cost, before it is run: a short dry run of each arm, then the whole study in simulated time.

Its parts: `measurement` (how long an experiment takes, from some of its images) and `forecast` (the scheduler, run with
these seconds and made-up results).
"""

from services.estimate.forecast import Estimate, PhaseEstimate, estimate

__all__ = ["Estimate", "PhaseEstimate", "estimate"]
