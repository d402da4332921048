"""A study in a store, and what puts trials into it."""

from collections.abc import Callable

import pytest

from services.store import Store
from services.trial_record import Trial

ARMS = ["random", "blockout"]
Queue = Callable[..., Trial]


@pytest.fixture
def study(store: Store) -> str:
    """The name of a study with the arms random and blockout."""
    return store.create_study("example", config={"arms": ARMS}, config_hash="cafe", arms=ARMS).name


@pytest.fixture
def queue(store: Store, study: str) -> Queue:
    """Queues a trial in the study, the next of its arm and phase unless told otherwise."""

    def queue_trial(**changes: object) -> Trial:
        values = {"arm": "random", "phase": "search", "seed": 7, "planned": 100, "experiment": {"width": 8}} | changes
        if "number" not in values:
            values["number"] = len(store.trials(study, arm=str(values["arm"]), phase=str(values["phase"])))
        return store.add_trial(study, **values)  # type: ignore[arg-type]

    return queue_trial


@pytest.fixture
def running(store: Store, queue: Queue) -> int:
    """The identity of a trial that runs."""
    trial = queue().id
    store.start_attempt(trial, worker="host:1")
    return trial
