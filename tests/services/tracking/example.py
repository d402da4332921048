"""A study in a store, and what MLflow has of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from services.store import Store
from tests.services.new_store import new_store

CONFIG = {
    "name": "example",
    "question": "Does it hold?",
    "budget": {"sample_passes": 400, "tolerance": 0.02},
    "arms": {"blockout": {"description": "structure"}},
}
EXPERIMENT = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4, 8]},
    "method": {"name": "blockout", "clusters": 4, "cost_target": None},
    "training": {"epochs": 3, "learning_rate": 0.01},
    "seed": 7,
    "architecture": {"clusters": 2, "layers": []},
}
RESULT = {
    "validation_accuracy": 0.8,
    "test_accuracy": 0.75,
    "parameters": 1000,
    "macs": 2000,
    "architecture_hash": "cafe",
    "gap": {"soft": 0.7, "hard": None},
}
ARMS = {"arms": {"blockout": {"test_accuracy": {"mean": 0.75}}, "thin": {"test_accuracy": None}}}


@contextmanager
def filled(
    path: Path, study: str, states: Sequence[str] = ("complete", "failed", "pruned", "running")
) -> Iterator[Store]:
    """Open a store with a study that has a trial in each of the states."""
    with new_store(path) as opened:
        opened.create_study(study, config=CONFIG, config_hash="cafe", arms=["blockout"])
        for number, state in enumerate(states):
            add(opened, study, number=number, state=state)
        yield opened


def add(
    store: Store, study: str, *, number: int, state: str, epochs: int = 3, telemetry: dict[str, Any] | None = None
) -> int:
    row = store.add_trial(
        study, arm="blockout", phase="search", number=number, seed=7, experiment=EXPERIMENT, planned=150
    )
    store.start_attempt(row.id)
    store.record_epochs(row.id, [epoch(number, **(telemetry or {})) for number in range(epochs)])
    if state == "complete":
        store.finish_trial(row.id, state, score=0.8, result=RESULT)
    elif state != "running":
        store.finish_trial(row.id, state, reason="loss became nan in epoch 2" if state == "failed" else "behind")
    return row.id


def epoch(number: int, **telemetry: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "stage": "learn",
        "sample_passes": 50 * (number + 1),
        "seconds": 0.5 * (number + 1),
        "train_loss": float("nan") if number == 2 else 1.5 - number,
        "validation_loss": float("inf") if number == 2 else 1.0,
        "validation_accuracy": (0.5, 0.9, 0.8)[number % 3],
        "telemetry": {"blockout/entropy/hidden": 0.25 * number, "blockout/widths": [1.0, 2.0], **telemetry},
    }


def runs(uri: str, study: str) -> dict[str, Run]:
    """All runs of a study by name; asserts that there are no two of one name."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"nas-blockout/{study}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def history(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in found)


def everything(uri: str, study: str) -> dict[str, Any]:
    return {
        key: (
            run.info.run_id,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.tags,
            run.data.params,
            {metric: history(uri, run, metric) for metric in run.data.metrics},
        )
        for key, run in runs(uri, study).items()
    }


def artifacts(uri: str, run: Run, place: str | None = None) -> dict[str, str]:
    """Paths of all artifacts of a run, and their contents."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    found: dict[str, str] = {}
    for file in client.list_artifacts(run.info.run_id, place):
        if file.is_dir:
            found |= artifacts(uri, run, file.path)
        else:
            found[file.path] = Path(client.download_artifacts(run.info.run_id, file.path)).read_text()
    return found
