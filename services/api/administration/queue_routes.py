"""The route that says where one's studies stand in line; of those of others it gives numbers and no names."""

from collections.abc import Sequence

from fastapi import APIRouter

from services.api.auth import Reader
from services.api.caches.token_cache import Caller
from services.api.schemas import QueueView, WaitingView
from services.api.state import Service
from services.api.studies import Shared, error_responses
from services.store import QueueSummary

router = APIRouter(prefix="/v1/queue", tags=["queue"])


def standing(shared: Service, caller: Caller) -> QueueView:
    """Return the numbers of studies that run and wait, and where those of the caller stand."""
    _, rows = shared.store.open_queue()
    waiting = [row for row in rows if row.state == "queued"]
    shown = [row for row in waiting if caller.administers or row.owner == caller.owner]
    return QueueView(
        running=len(rows) - len(waiting),
        waiting=len(waiting),
        studies=[_waiting(shared, row, waiting) for row in sorted(shown, key=_place)],
    )


@router.get("", summary="Show the queue", responses=error_responses())
def show_queue(shared: Shared, caller: Reader) -> QueueView:
    """Show how many studies run and wait, and where your own stand in line."""
    return standing(shared, caller)


def _place(row: QueueSummary) -> tuple[bool, int, int]:
    """Return what orders waiting studies; those without a position, which are set aside or new, come last."""
    return row.position is None, row.position or 0, row.id


def _waiting(shared: Service, row: QueueSummary, waiting: Sequence[QueueSummary]) -> WaitingView:
    # Counted and not taken from the position: what was ahead may have been started or cancelled since that was written.
    ahead = [other for other in waiting if _is_ahead(other, row)]
    placed = row.position is not None
    return WaitingView(
        name=row.study,
        owner=row.owner,
        priority=row.priority,
        waiting_since=row.waiting_since,
        position=row.position,
        ahead=len(ahead) if placed else None,
        own_ahead=sum(other.owner == row.owner for other in ahead) if placed else None,
        expected_at=row.expected_at,
        message=shared.paths.hide(row.message),
    )


def _is_ahead(other: QueueSummary, row: QueueSummary) -> bool:
    return other.position is not None and row.position is not None and other.position < row.position
