"""What MLflow's pages show at first sight: one run an arm, prepared views, and the addresses of both.

`arm_runs` finds and writes the runs of arms, `arm_values` are their metrics, curves and tags, `prepared_views` are the
views that an experiment offers, with the addresses of the pages on which people compare.
"""

from services.tracking.overview.arm_runs import ArmRuns
from services.tracking.overview.arm_values import ArmFinding
from services.tracking.overview.prepared_views import address_of_comparison, pages_of, write_views

__all__ = ["ArmFinding", "ArmRuns", "address_of_comparison", "pages_of", "write_views"]
