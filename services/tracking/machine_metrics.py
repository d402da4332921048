"""MLflow's system metrics of the machine that drives a study: processor, memory, disk, network and graphics cards.

They need `psutil`, and `nvidia-ml-py` for cards; where these are not installed there are none. Unlike everything else
they do not come from the store. `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` turns them off.
"""

import importlib.util
import logging
import os
from typing import Any

from services.tracking.mlflow_client import as_mlflow_reads

SAMPLING_SECONDS = 10
SAMPLES_AT_ONCE = 3  # a batch of a dozen numbers every half minute, so that a study of a day has 35,000


class MachineMetrics:
    """Writes system metrics to a run, in a thread of MLflow's.

    Args:
        uri: Tracking URI.
        sampling_seconds: Time between samples.
    """

    def __init__(self, uri: str, *, sampling_seconds: float = SAMPLING_SECONDS) -> None:
        self._uri, self._sampling_seconds = uri, sampling_seconds
        self._monitor: Any = None

    def begin(self, client: Any, run: str) -> None:
        """Begin to write to a run, or do nothing if that is being done or cannot be.

        Args:
            client: Of MLflow.
            run: ID of the run, which is set running: MLflow stops measuring once it has ended.
        """
        if self._monitor is not None or not _is_wanted():
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # it logs what `following` warns of
        client.update_run(run, status="RUNNING")
        make: Any = SystemMetricsMonitor  # it has no types
        self._monitor = make(
            run,
            sampling_interval=self._sampling_seconds,
            samples_before_logging=SAMPLES_AT_ONCE,
            resume_logging=True,
            tracking_uri=as_mlflow_reads(self._uri),
        )
        self._monitor.start()

    def end(self) -> None:
        """Stop, and write what was measured."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def _is_wanted() -> bool:
    switched_off = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").strip().lower() in ("false", "0")
    return not switched_off and importlib.util.find_spec("psutil") is not None
