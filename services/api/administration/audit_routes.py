"""The route by which an administrator reads the audit log."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.auth import Administrator
from services.api.schemas import AuditPage, AuditView
from services.api.studies import Shared, error_responses
from services.store.checked_values import MAX_INTEGER

router = APIRouter(prefix="/v1/audit", tags=["audit"])
Filter = Annotated[str | None, Query(max_length=100)]


@router.get("", summary="Read the audit log", responses=error_responses(403))
def read_audit_log(
    shared: Shared,
    caller: Administrator,
    actor: Filter = None,
    action: Filter = None,
    subject: Filter = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Maximum number of rows.")] = 100,
    before: Annotated[int | None, Query(ge=1, le=MAX_INTEGER, description="`next` of the previous page.")] = None,
) -> AuditPage:
    """Read who did what, newest first; for administrators."""
    rows = shared.store.audit_log(actor=actor, action=action, subject=subject, limit=limit + 1, before=before)
    shown = [
        AuditView(
            id=row.id,
            at=row.at,
            actor=row.actor,
            token=row.token,
            action=row.action,
            subject=row.subject,
            detail=dict(row.detail),
        )
        for row in rows[:limit]
    ]
    return AuditPage(rows=shown, next=shown[-1].id if len(rows) > limit else None)
