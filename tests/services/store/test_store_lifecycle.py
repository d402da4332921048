"""Whatever happens to a trial, and in whatever order, the store does what a few lines of Python say it should."""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.store import StateError, Store

ENDS = ("complete", "failed", "pruned")
STEPS = st.one_of(
    st.tuples(st.just("start"), st.none()),
    st.tuples(st.just("requeue"), st.none()),
    st.tuples(st.just("record"), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
    st.tuples(st.just("finish"), st.sampled_from(ENDS)),
)


@dataclass
class Model:
    """What a trial should be."""

    state: str = "queued"
    attempts: list[str] = field(default_factory=list)
    epochs: dict[int, int] = field(default_factory=dict)
    cost: int = 0

    def end_attempt(self, state: str) -> None:
        if self.attempts and self.attempts[-1] == "running":
            self.attempts[-1] = state

    def apply(self, step: str, detail: object, serial: int) -> bool:
        """Take a step and return whether it is allowed; one that is not changes nothing."""
        ended = self.state in ENDS
        if step == "start" and not ended:
            self.end_attempt("lost")
            self.attempts.append("running")
            self.state = "running"
        elif step == "requeue" and self.state == "running":
            self.end_attempt("lost")
            self.state = "queued"
        elif step == "record" and self.state == "running":
            for epoch in detail:
                self.epochs.setdefault(epoch, serial)
            self.cost = max(self.cost, *(10 * epoch for epoch in detail))
        elif step == "finish" and (self.state == "running" or (self.state == "queued" and detail != "complete")):
            self.state = detail
            self.end_attempt("failed" if detail == "failed" else "complete")
        else:
            return step == "requeue" or (step == "finish" and detail == self.state)
        return True


def take(store: Store, study: str, trial: int, step: str, detail: object, serial: int) -> None:
    if step == "start":
        store.start_attempt(trial)
    elif step == "requeue":
        store.requeue_running(study)
    elif step == "record":
        records = [
            {"epoch": epoch, "sample_passes": 10 * epoch, "seconds": epoch, "serial": serial} for epoch in detail
        ]
        store.record_epochs(trial, records)
    else:
        store.finish_trial(trial, detail, score=0.5, reason="why")


def seen(store: Store, trial: int) -> Model:
    row = store.trial(trial)
    assert (row.finished_at is not None) == (row.state in ENDS)
    return Model(
        row.state,
        [attempt.state for attempt in store.attempts(trial)],
        {epoch.epoch: epoch.metrics["serial"] for epoch in store.epochs(trial)},
        row.sample_passes,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=14))
def test_two_trials_follow_the_model_through_every_interleaving(store, steps):
    study = store.create_study(f"s{len(store.studies())}", config={}, config_hash="x", arms=["a"]).name
    common = {"arm": "a", "phase": "search", "seed": 0, "planned": 0, "experiment": {}}
    trials = [store.add_trial(study, number=number, **common).id for number in range(2)]
    models = [Model(), Model()]
    for serial, (which, (step, detail)) in enumerate(steps):
        allowed = models[which].apply(step, detail, serial)
        if step == "requeue":
            models[1 - which].apply(step, detail, serial)
        if allowed:
            take(store, study, trials[which], step, detail, serial)
        else:
            with pytest.raises(StateError):
                take(store, study, trials[which], step, detail, serial)
        assert [seen(store, trial) for trial in trials] == models
