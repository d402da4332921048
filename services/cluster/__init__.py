"""The only package that imports Ray: `trials` runs the trials of a study, `jobs` submits whole studies to a cluster."""

from services.cluster.connection import ClusterError, check, surrounding_cluster
from services.cluster.shared_data import SharedData
from services.cluster.trials import Resources, Tasks, run

__all__ = ["ClusterError", "Resources", "SharedData", "Tasks", "check", "run", "surrounding_cluster"]
