"""Replays: recorded searches as a benchmark for any searcher with any number of simulated workers, without training.

`pool` finds the recorded trial that is used for a proposal, `simulation` runs workers in simulated time, `reproduction`
checks that the scheduler proposes the recorded trials again, `results` computes curves and quartiles, and
`recorded_study` does all of this for a study in the store.
"""

from services.replay.recorded_study import Replayed, Request, replay
from services.replay.reproduction import Reproduction, faithful
from services.replay.results import Outcome

__all__ = ["Outcome", "Replayed", "Reproduction", "Request", "faithful", "replay"]
