"""Ray, and nothing else imports it: `trials` runs the trials of a study, `jobs` submits whole studies to a cluster."""

from services.cluster.access import ClusterError, check
from services.cluster.trials import Resources, Tasks, run

__all__ = ["ClusterError", "Resources", "Tasks", "check", "run"]
