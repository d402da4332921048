"""The worker of the service: it leases queued studies and runs each of them as a Ray job.

`fair_share` decides who is next and who makes room, from what `planning` and `owner_limits` find out; `decision`
decides what to do with a leased study, from the state of queue, cluster and store; `dispatcher` does it; `loop` repeats
that.
"""

from services.dispatch.decision import MOST_RESTARTS, Action, Requeue, Settle, Stop, Submit, Wait, decide
from services.dispatch.dispatcher import Cluster, Dispatcher
from services.dispatch.fair_share import Policy
from services.dispatch.loop import pulse, work

__all__ = [
    "MOST_RESTARTS",
    "Action",
    "Cluster",
    "Dispatcher",
    "Policy",
    "Requeue",
    "Settle",
    "Stop",
    "Submit",
    "Wait",
    "decide",
    "pulse",
    "work",
]
