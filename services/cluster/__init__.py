"""Ray, and nothing else imports it: `trials` runs the trials of a study, `jobs` submits whole studies to a cluster."""

from services.cluster.connection import ClusterError, check, own_cluster
from services.cluster.trials import Resources, Tasks, run

__all__ = ["ClusterError", "Resources", "Tasks", "check", "own_cluster", "run"]
