"""Recorded searches as a benchmark: any searcher with any number of simulated workers, without any training.

Its parts: `pool` (which recorded trial answers a proposal), `simulation` (workers in simulated time), `reproduction`
(the proof that the scheduler, asked again, proposes what it proposed in the study), `results` (curves and quartiles)
and `recorded_study` (all of it for a study in the store).
"""

from services.replay.recorded_study import Replayed, Request, replay
from services.replay.reproduction import Reproduction, faithful
from services.replay.results import Outcome

__all__ = ["Outcome", "Replayed", "Reproduction", "Request", "faithful", "replay"]
