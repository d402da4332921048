"""Who may see a study, and who may change it: its owner, teams that it is shared with, administrators.

What was run on the command line is seen by administrators and the owner whom the operator names, and changed by nobody
through the service.
"""

import re
from collections.abc import Sequence

from services.api.caches.status_cache import Snapshot
from services.api.caches.token_cache import Caller
from services.api.errors import RequestError, not_found
from services.api.state import Service
from services.execution.earlier_trials import recalled
from services.store import QueueRow, QueueSummary
from services.study_config.searching.warm_starts import Recall, Recalled, WarmStart

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def own(shared: Service, caller: Caller, name: str) -> QueueRow:
    """Return a study that the caller may see: an own one, one shared with a team, or any for an administrator.

    Also one that was run on the command line, for those who see these.

    Raises:
        RequestError: There is none of that name, or the caller may not see it, which gives the same response.
    """
    row = shared.store.queued_study(name) if NAME.fullmatch(name) else None
    if row is None and NAME.fullmatch(name) and sees_command_line(shared, caller):
        row = shared.store.command_line_study(name)
    if row is None or not _may_see(shared, caller, row):
        raise not_found("study of that name")
    return row


def changeable(shared: Service, caller: Caller, name: str) -> QueueRow:
    """Return a study that the caller may change: an own one, or any for an administrator.

    Raises:
        RequestError: There is none of that name, or the caller may only see it.
    """
    row = own(shared, caller, name)
    if not row.submitted:
        raise RequestError(
            403,
            "not_submitted",
            "this study was run on the command line: the service shows it, and does not change it",
            remedy="use `nas-blockout run`, `submit` or `delete` where it was run",
        )
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
    return row.submitted and (caller.administers or row.owner == caller.owner)


def sees_command_line(shared: Service, caller: Caller) -> bool:
    """Whether a caller sees the studies of this home that were run on the command line.

    They have no owner in the store: administrators see them, and the one owner whom the operator names.
    """
    return caller.administers or caller.owner == shared.settings.command_line_owner


def earlier_studies(shared: Service, caller: Caller) -> Recall:
    """Return what reads the trials of earlier studies for a warm start: of those that the caller may see.

    A study of somebody else is answered like one that does not exist, and named by no error.
    """

    def visible(name: str) -> QueueRow | None:
        try:
            return own(shared, caller, name)
        except RequestError:
            return None

    def recall(study: str, arm: str, wanted: WarmStart) -> Sequence[Recalled]:
        begun = visible(study)
        return recalled(
            shared.store,
            wanted,
            own=begun.document if begun is not None else None,
            arm=arm,
            may_read=lambda name: visible(name) is not None,
            known=[row.study for row in shared.store.queue(owner=caller.owner)],
        )

    return recall


def _may_see(shared: Service, caller: Caller, row: QueueSummary) -> bool:
    if not row.submitted:
        return sees_command_line(shared, caller)
    return may_change(caller, row) or shared.store.is_shared_with(row.study, caller.owner)
