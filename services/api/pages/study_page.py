"""The page of a study: how far it is, what it shows, what failed, and its forms."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from services.api import studies, study_files
from services.api.administration import deletion_routes, team_routes
from services.api.administration.access import may_change
from services.api.administration.queue_routes import standing
from services.api.caches.status_cache import Snapshot
from services.api.errors import RequestError, not_found
from services.api.pages.findings import findings_of
from services.api.pages.queue_page import ahead_words
from services.api.schemas import StudyDetail, study_fields
from services.api.state import Service
from services.api.web import Form, Visit, Visited, digest, frame, rendered
from services.files.study_dir import Folder
from services.finalize.mlflow_pages import full_addresses, pages_of
from services.store import NotFound, ProjectionRow, QueueRow, StoreError
from services.study_config.errors import StudyError

_MOST_FAILED = 500  # failed trials that are read for the page
_MOST_EVENTS = 50
_QUESTIONS = {"cancel": ("queued", "running"), "delete": ("complete", "failed", "cancelled")}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """Failed trials of an arm that give the same reason.

    Args:
        arm: Name of the arm.
        reason: Why they failed.
        count: How many there are.
    """

    arm: str
    reason: str
    count: int


@router.get("/studies/{name}")
def study_page(visited: Visited, name: str) -> Response:
    """One study."""
    return _study(visited, name)


@router.get("/parts/studies/{name}")
def study_part(visited: Visited, name: str, digest: str = "", state: str = "") -> Response:
    """The status of a study, or 204 if it has not changed."""
    part = _study_status(visited, name)
    if part["digest"] == digest:
        return Response(status_code=204)
    now = part["study"].state
    return rendered("study_part", **part, announcement=f"{name} is {now}" if state and state != now else "")


@router.get("/studies/{name}/{action}")
def confirm_page(visited: Visited, name: str, action: str) -> Response:
    """Ask whether a study is to be cancelled or deleted: a link alone changes nothing."""
    if action not in _QUESTIONS:
        raise not_found("page of that name")
    row = studies.status(visited.shared, visited.caller, name).row
    if not (visited.caller.writes and may_change(visited.caller, row)) or row.state not in _QUESTIONS[action]:
        return RedirectResponse(f"/studies/{row.study}", 303)
    days = visited.shared.settings.delete_grace_days
    return rendered("confirm", study=row, action=action, days=days, **frame(visited))


@router.post("/studies/{name}/cancel")
def cancel(visited: Visited, name: str, fields: Form) -> Response:
    """Cancel a study."""
    return _done(visited, name, lambda: studies.cancel(visited.shared, visited.caller, name))


@router.post("/studies/{name}/delete")
def delete(visited: Visited, name: str, fields: Form) -> Response:
    """Delete a study."""
    return _done(visited, name, lambda: deletion_routes.delete(visited.shared, visited.caller, name), then="/deleted")


@router.post("/studies/{name}/share")
def share(visited: Visited, name: str, fields: Form) -> Response:
    """Share a study with a team, or share it no longer."""
    team, on = fields.get("team", "").strip(), fields.get("on") == "1"
    return _done(visited, name, lambda: team_routes.share(visited.shared, visited.caller, name, team, on=on))


@router.post("/studies/{name}/resume")
def resume(visited: Visited, name: str, fields: Form) -> Response:
    """Resume a study."""
    return _done(visited, name, lambda: studies.resume(visited.shared, visited.caller, name))


@router.post("/studies/{name}/extend")
def extend(visited: Visited, name: str, fields: Form) -> Response:
    """Extend a study."""
    text = fields.get("assignments", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _done(visited, name, lambda: studies.extend(visited.shared, visited.caller, name, lines), text)


def _done(visited: Visit, name: str, action: Callable[[], object], text: str = "", *, then: str = "") -> Response:
    try:
        action()
    except (RequestError, StudyError, StoreError) as error:
        request_error = visited.shared.paths.error(error)
        if request_error.status == 404:  # there is no page to show the error in
            raise
        return _study(visited, name, request_error, text)
    return RedirectResponse(then or f"/studies/{name}", 303)


def _study(visited: Visit, name: str, error: RequestError | None = None, text: str = "") -> Response:
    problem = error.problem if error else None
    part = _study_status(visited, name)
    status = error.status if error else 200
    values = {**part, **frame(visited), "problem": problem, "form": {"assignments": text}, "announcement": ""}
    return rendered("study", status, here="study", **values)


def _study_status(visited: Visit, name: str) -> dict[str, Any]:
    shared = visited.shared
    snapshot = studies.status(shared, visited.caller, name)
    progress, row = snapshot.progress, snapshot.row
    arms = {"share": progress.share, "arms": progress.arms}
    fields = study_fields(row, retention_days=shared.settings.retention_days)
    question = str(row.document.get("question", ""))
    results = row.state == "complete" or Folder(shared.settings.folder(row.study)).report.is_file()
    shown = {
        "study": StudyDetail(**fields, question=question, **arms, study={}),
        "models": study_files.models(shared, visited.caller, name) if row.ended else [],
        "results": results,
        "findings": findings_of(shared, row) if row.state == "complete" else None,
        "failures": _failures(shared, snapshot),
        "happened": [(event.at, event.kind) for event in snapshot.events[-_MOST_EVENTS:]],
        "ahead": _ahead(visited, row),
        "links": _links(shared, snapshot),
        "live": not row.ended,
    }
    found = digest(shown)
    query = urlencode({"digest": found, "state": row.state})
    may = visited.caller.writes and may_change(visited.caller, row)
    teams = {"shares": shared.store.shares(name), "teams": sorted(_teams(visited)) if may else []}
    own = {"caller": visited.caller, "proof": visited.proof, "may_change": may, **teams}
    return {**shown, **own, "digest": found, "query": query}


def _failures(shared: Service, snapshot: Snapshot) -> list[Failure]:
    """Return the failed trials of a study by arm and reason, most of them first."""
    if not any(arm.failed for arm in snapshot.progress.arms):
        return []
    trials = shared.store.trials(snapshot.row.study, state="failed", limit=_MOST_FAILED, experiments=False)
    counts = Counter((trial.arm, shared.paths.hide(trial.reason or "no reason was recorded")) for trial in trials)
    return [Failure(arm, reason, count) for (arm, reason), count in counts.most_common()]


def _ahead(visited: Visit, row: QueueRow) -> str:
    """Return what is ahead of a waiting study in words; empty for any other."""
    if row.state != "queued" or not row.submitted or not may_change(visited.caller, row):
        return ""
    found = next((each for each in standing(visited.shared, visited.caller).studies if each.name == row.study), None)
    return "" if found is None or not found.ahead else ahead_words(found)


def _teams(visited: Visit) -> Mapping[str, object]:
    return visited.shared.store.teams(None if visited.caller.administers else visited.caller.owner)


def _links(shared: Service, snapshot: Snapshot) -> dict[str, str]:
    """Return links to the MLflow pages and the Ray job of a study, if their URLs are configured."""
    links = {}
    if shared.settings.mlflow_url and snapshot.events:
        projections: tuple[ProjectionRow, ...] = ()
        with suppress(NotFound):
            projections = shared.store.projections(snapshot.row.study, "mlflow")
        run = next((row.external_id for row in projections if row.trial is None), None)
        if run is not None:
            links["MLflow run"] = f"{shared.settings.mlflow_url}/#/runs/{run}"
            pages = full_addresses(shared.settings, pages_of(shared.store, snapshot.row.study))
            links |= {f"{name} in MLflow": address for name, address in pages.items()}
    if shared.settings.ray_url and snapshot.row.job:
        links["Ray job"] = f"{shared.settings.ray_url}/#/jobs/{snapshot.row.job}"
    return links
