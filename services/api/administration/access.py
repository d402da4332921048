"""Who may see a study, and who may change it: its owner, teams that it is shared with, administrators."""

import re

from services.api.caches.status_cache import Snapshot
from services.api.caches.token_cache import Caller
from services.api.errors import RequestError, not_found
from services.api.state import Service
from services.store import QueueRow, QueueSummary

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def own(shared: Service, caller: Caller, name: str) -> QueueRow:
    """Return a study that the caller may see: an own one, one shared with a team, or any for an administrator.

    Raises:
        RequestError: There is none of that name, or the caller may not see it, which gives the same response.
    """
    row = shared.store.queued_study(name) if NAME.fullmatch(name) else None
    if row is None or not _may_see(shared, caller, row):
        raise not_found("study of that name")
    return row


def changeable(shared: Service, caller: Caller, name: str) -> QueueRow:
    """Return a study that the caller may change: an own one, or any for an administrator.

    Raises:
        RequestError: There is none of that name, or the caller may only see it.
    """
    row = own(shared, caller, name)
    if not may_change(caller, row):
        remedy = f"ask {row.owner}, or an administrator"
        raise RequestError(403, "not_owner", "this study is shared with you to be seen, not changed", remedy=remedy)
    return row


def require_visible(shared: Service, caller: Caller, snapshot: Snapshot | None) -> Snapshot:
    """Return the status of a study that the caller may see; raises as `own`."""
    if snapshot is None or not _may_see(shared, caller, snapshot.row):
        raise not_found("study of that name")
    return snapshot


def may_change(caller: Caller, row: QueueSummary) -> bool:
    """Whether a caller may change a study, if the token is not read-only."""
    return caller.administers or row.owner == caller.owner


def _may_see(shared: Service, caller: Caller, row: QueueSummary) -> bool:
    return may_change(caller, row) or shared.store.is_shared_with(row.study, caller.owner)
