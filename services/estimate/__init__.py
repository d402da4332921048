"""Prediction of the cost of a study: a short dry run of each arm, then the whole study in simulated time.

`measurement` predicts the duration of an experiment from a training on some of its images. `forecast` runs the
scheduler with these durations and invented results.
"""

from services.estimate.forecast import Estimate, PhaseEstimate, estimate

__all__ = ["Estimate", "PhaseEstimate", "estimate"]
