"""The worker of the service: it takes queued studies by a lease and sees each of them through as a Ray job.

`decision` says what is to be done, from what queue, cluster and store know; `dispatcher` does it; `loop` repeats that.
"""

from services.dispatch.decision import MOST_RESTARTS, Action, Settle, Stop, Submit, Wait, decide
from services.dispatch.dispatcher import AT_ONCE, Cluster, Dispatcher
from services.dispatch.loop import pulse, work

__all__ = [
    "AT_ONCE",
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
