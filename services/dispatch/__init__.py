"""The worker of the service: it leases queued studies and runs each of them as a Ray job.

`decision` decides what to do, from the state of queue, cluster and store; `dispatcher` does it; `loop` repeats that.
"""

from services.dispatch.decision import MOST_RESTARTS, Action, Settle, Stop, Submit, Wait, decide
from services.dispatch.dispatcher import MAX_RUNNING, Cluster, Dispatcher
from services.dispatch.loop import pulse, work

__all__ = [
    "MAX_RUNNING",
    "MOST_RESTARTS",
    "Action",
    "Cluster",
    "Dispatcher",
    "Settle",
    "Stop",
    "Submit",
    "Wait",
    "decide",
    "pulse",
    "work",
]
