"""Recorded searches as a benchmark: any searcher with any number of simulated workers, without any training.

Its parts: `pool` (recorded trials, and which of them answers a proposal), `simulation` (workers in simulated time),
`reproduction` (the proof that the plan proposes again what it really proposed), `outcome` (curves and quartiles) and
`study` (all of it for a study in the store).
"""

from services.replay.outcome import Outcome
from services.replay.reproduction import Reproduction, faithful
from services.replay.study import Replayed, Request, replay

__all__ = ["Outcome", "Replayed", "Reproduction", "Request", "faithful", "replay"]
