"""Metrics of the driver's machine: written while the study runs, on from where an earlier driver stopped."""

import threading
import time

import mlflow
import pytest
from mlflow.entities import Run

from services.store import Store
from services.tracking import Projection
from services.tracking.machine_metrics import MachineMetrics
from tests.services.tracking.example import CONFIG

pytest.importorskip("psutil")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CPU = "system/cpu_utilization_percentage"


def measured(projection: Projection, *, points: int) -> Run:
    """Measure until the study's run has so many points, and return the run."""
    client, deadline = mlflow.MlflowClient(tracking_uri=projection.uri), time.monotonic() + 60
    machine = MachineMetrics(projection.uri, sampling_seconds=0.02)
    projection.measure(machine)
    while len(client.get_metric_history(projection.parent, CPU)) < points:
        assert time.monotonic() < deadline, "nothing was measured"
        time.sleep(0.05)
    machine.end()
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    return client.get_run(projection.parent)


def test_the_machine_is_measured_and_a_later_driver_goes_on(uri: str, name: str, store: Store) -> None:
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.set_terminated(projection.parent)  # the study had ended, and is extended
    run = measured(projection, points=1)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0
    before = len(client.get_metric_history(projection.parent, CPU))
    measured(projection, points=before + 1)
    steps = [point.step for point in client.get_metric_history(projection.parent, CPU)]
    assert sorted(set(steps)) == list(range(len(steps))), "none twice"


def test_whoever_turns_them_off_has_none(uri: str, name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    projection = Projection(uri, name, CONFIG, store)
    projection.sync()
    projection.measure(MachineMetrics(uri))
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
