"""Small studies for the running system, and what must come out of them whatever happens on the way."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.store import Store
from services.study_config.yaml_reader import find, read_document
from services.trial_record import Trial
from tests.once import once
from tests.services.program import here, of

STUDY = os.environ.get("TOPOLOGY_STUDY", "tiny")  # `quickstart`, or any other that is bundled, takes its time
TINY: dict[str, Any] = {
    "schema_version": 2,
    "name": "tiny",
    "data": {"name": "digits", "train_samples": 100},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 6, "batch_size": 20},
    "budget": {"sample_passes": 2412},
    "retrain": {"seeds": [0, 1]},
    "workers": {"max_concurrent_trials": 1},
    "arms": {"dense": {"space": ["training"]}, "dropout": {"method": {"name": "dropout"}, "space": ["training"]}},
    "export": [],
}
LONG: dict[str, Any] = {
    **TINY,
    "training": {"epochs": 120, "batch_size": 10},
    "budget": {"sample_passes": 48_240},
    "arms": {"dense": {}},
}
_MEASURED = {"study", "seconds", "overhead_seconds", "latency_ms", "suggest_seconds", "usage", "images_per_second"}


def chosen() -> dict[str, Any]:
    """The study of the topology test; one trial at a time, so that a search sees its results in one order."""
    document = TINY if STUDY == "tiny" else read_document(find(STUDY))
    return {**document, "workers": {**document.get("workers", {}), "max_concurrent_trials": 1}}


def write(folder: Path, document: Mapping[str, Any], name: str) -> Path:
    """Write a study under a name; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**document, "name": name}, sort_keys=False))
    return path


def run_here(home: Path, document: Mapping[str, Any], name: str) -> None:
    """Run a study without any service, as on a laptop, in this process."""
    path = write(home, document, name)
    for _ in range(3):  # on a machine that is overloaded Ray gives up starting; the same command goes on
        ended = here("run", "--quiet", path, **of(home))
        if ended.code == 0:
            break
    assert ended.code == 0, ended.err[-3000:]


def home_of(document: Mapping[str, Any], factory: pytest.TempPathFactory) -> Path:
    """A home in which a study was run without any service, once a test run, under the name `alone`."""
    return once(factory, f"alone-{document['name']}", lambda home: run_here(home, document, "alone"))


def timeless(value: Any) -> Any:
    """A comparison without its name and what a clock has measured."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in _MEASURED}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def comparison(home: Path, name: str) -> Any:
    """What a study found, without its name and what a clock has measured."""
    return timeless(json.loads((home / "runs" / name / "comparison.json").read_text()))


def trials(store: Store, name: str) -> list[Any]:
    """The trials of a study as they must come out, in order: whatever was done twice would be here twice."""
    return sorted((_trial(store, row) for row in store.trials(name)), key=str)


def _trial(store: Store, row: Trial) -> Any:
    result = {key: (row.result or {}).get(key) for key in ("validation_accuracy", "test_accuracy", "parameters")}
    epochs = [epoch.epoch for epoch in store.epochs(row.id)]
    return [row.arm, row.phase, row.number, row.seed, row.state, row.sample_passes, row.score, result, epochs]
