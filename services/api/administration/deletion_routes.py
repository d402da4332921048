"""Routes that delete a study and restore it."""

from fastapi import APIRouter

from services.api import auth
from services.api.administration.access import NAME, changeable
from services.api.auth import Reader, Writer
from services.api.caches.token_cache import Caller
from services.api.errors import not_found
from services.api.schemas import DeletedView, StudyView
from services.api.state import Service
from services.api.studies import Shared, error_responses, noted, view
from services.store import DeletedRow, acting

_DAY_SECONDS = 86_400.0

router = APIRouter(prefix="/v1", tags=["life cycle"])


def delete(shared: Service, caller: Caller, name: str) -> DeletedRow:
    """Delete a study of the caller, which can be restored for a grace time; repeating it has no effect."""
    auth.require_write(caller)
    if (deleted := _deleted(shared, caller, name)) is not None:
        return deleted
    row = changeable(shared, caller, name)
    grace = _DAY_SECONDS * shared.settings.delete_grace_days
    with acting(caller.actor):
        deleted = shared.store.delete_study(row.study, grace_seconds=grace, by=caller.owner)
    noted(shared, caller, "deleted", row)
    return deleted


@router.delete("/studies/{name}", summary="Delete a study", responses=error_responses(403, 404, 409))
def delete_study(shared: Shared, caller: Writer, name: str) -> DeletedView:
    """Delete a study that has ended: it is hidden at once, and purged with its files and MLflow runs at `purge_at`.

    Until then it can be restored, and its name is taken. A study that waits or runs has to be cancelled first.
    """
    return _view(delete(shared, caller, name))


@router.post("/studies/{name}/restore", summary="Restore a deleted study", responses=error_responses(403, 404, 409))
def restore_study(shared: Shared, caller: Writer, name: str) -> StudyView:
    """Restore a deleted study before it is purged."""
    deleted = _deleted(shared, caller, name)
    if deleted is None:
        raise not_found("deleted study of that name")
    with acting(caller.actor):
        shared.store.restore_study(deleted.study)
    row = changeable(shared, caller, name)
    return view(shared, noted(shared, caller, "restored", row))


@router.get("/deleted", summary="List deleted studies", responses=error_responses())
def list_deleted(shared: Shared, caller: Reader) -> list[DeletedView]:
    """List your deleted studies that can be restored, those due first come first; an administrator sees all."""
    rows = shared.store.deleted_studies(None if caller.administers else caller.owner)
    return [_view(row) for row in rows if row.owner is not None]


def _deleted(shared: Service, caller: Caller, name: str) -> DeletedRow | None:
    row = shared.store.deleted_study(name) if NAME.fullmatch(name) else None
    return row if row is not None and _may_dispose(caller, row) else None


def _may_dispose(caller: Caller, row: DeletedRow) -> bool:
    # A study that was run without the service belongs to nobody here; operators delete and restore it.
    return row.owner is not None and (caller.administers or row.owner == caller.owner)


def _view(row: DeletedRow) -> DeletedView:
    return DeletedView(
        name=row.study,
        owner=row.owner,
        deleted_by=row.deleted_by,
        deleted_at=row.deleted_at,
        purge_at=row.purge_at,
    )
