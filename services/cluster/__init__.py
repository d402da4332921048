"""The only package that imports Ray: `trials` runs the trials of a study, `jobs` submits whole studies to a cluster."""

from services.cluster.connection import ClusterError, check, surrounding_cluster
from services.cluster.trials import Resources, Tasks, run

__all__ = ["ClusterError", "Resources", "Tasks", "check", "run", "surrounding_cluster"]
