"""MLflow, written from the store: idempotent, and never in the way of training. The sole importer of mlflow.

`projection` writes a study, `follower` does so beside its training. `study_identity` tells studies of one name apart,
`experiments` and `study_runs` find what is there of a study, `relocation` finds files that were moved. `run_values` are
the parameters, tags and metrics of a run, `run_files` its files, `data_sets` its data, `logged_models` its models,
`machine_metrics` those of the driver's machine. `mlflow_client` connects and explains errors, `overview` is what its
pages show at first sight.
"""

from services.tracking.data_sets import data_sets
from services.tracking.follower import following
from services.tracking.mlflow_client import TrackingError, TrackingUnreachable, check
from services.tracking.overview import ArmFinding
from services.tracking.projection import Projection, Synced, discard

__all__ = [
    "ArmFinding",
    "Projection",
    "Synced",
    "TrackingError",
    "TrackingUnreachable",
    "check",
    "data_sets",
    "discard",
    "following",
]
