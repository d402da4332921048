"""The web page: log in with a token, submit, follow, download. Refreshed by htmx, and usable without it."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jinja2
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.api import auth, studies, study_files
from services.api.administration import deletion_routes, team_routes
from services.api.administration.access import may_change
from services.api.caches.status_cache import Snapshot
from services.api.caches.token_cache import Caller
from services.api.errors import RequestError
from services.api.requests import request_body
from services.api.schemas import Problem, StudyDetail, StudyView, study_fields
from services.api.sessions import COOKIE, SECONDS
from services.api.sign_in.provider_requests import ProviderError
from services.api.state import Service
from services.api.studies import Body, Shared
from services.files.study_dir import Folder
from services.finalize.mlflow_pages import full_addresses, pages_of
from services.store import NotFound, StoreError, acting
from services.study_config.errors import StudyError
from services.study_config.overrides import assigned
from services.study_config.yaml_reader import bundled, read_document

STATIC = {"htmx.min.js": "text/javascript", "service.css": "text/css"}
_FOLDER = Path(__file__).parents[1]
_MAX_FIELDS = 20
_LINES = 20
_LOG = logging.getLogger("nas_blockout.api")
_SITES = frozenset({"same-origin", "none"})  # "none": the user typed the address, or used a bookmark

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of a user who is logged in."""

    shared: Service
    caller: Caller
    cookie: str

    @property
    def proof(self) -> str:
        """What forms of this session carry."""
        return self.shared.sessions.proof(self.cookie)


@dataclass(frozen=True, slots=True)
class Line:
    """A study in the list, with the fraction of its budget used if it has started."""

    study: StudyView
    share: float | None


class LoggedOut(Exception):
    """The user is not logged in."""


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_FOLDER / "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.globals["place"] = _place
    return made


def _place(study: StudyView) -> str:
    """Return where a waiting study stands in line, in words that follow its message; empty for any other."""
    if study.position is None:
        return ""
    words = f"{study.position} in line" if study.position > 1 else "next in line"
    if study.expected_at is not None:
        words += f", expected to start at {study.expected_at:%Y-%m-%d %H:%M} UTC"
    return f" ({words})"


@cache
def _static(name: str) -> tuple[bytes, str]:
    content = (_FOLDER / "static" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def visit(request: Request, shared: Shared) -> Visit:
    """Return the user of the page.

    Raises:
        LoggedOut: The user is not logged in or has logged out, or the token has expired or was revoked.
    """
    session = auth.session_of(request)
    caller = shared.callers.ask(session) if session else None
    if caller is None:
        raise LoggedOut
    return Visit(shared, caller, request.cookies[COOKIE])


Visited = Annotated[Visit, Depends(visit)]


def _form(content: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(content.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise RequestError(422, "malformed_body", "the body must be a form", remedy="use the page") from None
    return {name: values[0].replace("\r\n", "\n") for name, values in fields.items()}


def _require_own(request: Request) -> None:
    """Refuse a form sent by another site (CSRF)."""
    # Browsers that send neither header are left to the proof in the form, and the cookie is SameSite=strict.
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    if site not in _SITES or (origin is not None and urlsplit(origin).netloc != request.headers.get("host")):
        raise RequestError(403, "other_site", "the form was sent by another site", remedy="use the form on this page")


def form(request: Request, visited: Visited, content: Body) -> dict[str, str]:
    """Return the fields of a form of this session.

    Raises:
        RequestError: It is not a form of this session.
    """
    _require_own(request)
    fields = _form(content)
    if not visited.shared.sessions.proves(visited.cookie, fields.get("proof", "")):
        raise RequestError(403, "other_site", "the form belongs to another session", remedy="reload the page")
    return fields


Form = Annotated[dict[str, str], Depends(form)]


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """One of the two files that the page needs."""
    if name not in STATIC:
        raise RequestError(404, "not_found", "there is nothing at this path")
    content, tag = _static(name)
    # May be kept, but must be asked for each time: after an update nobody sees a page with an old script.
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=STATIC[name], headers=headers)


@router.get("/login")
def login_page(shared: Shared) -> Response:
    """The form to log in with, and the way to the identity provider if there is one."""
    return _login(shared, None)


@router.post("/login")
def login(request: Request, shared: Shared, content: Body) -> Response:
    """Open a session with a token."""
    _require_own(request)
    caller = shared.callers.ask(_form(content).get("token", "").strip())
    if caller is None:
        auth.count(shared, ("address", request.client.host if request.client else ""))
        problem = Problem(code="unauthorized", message="This token is not valid: it is mistyped, expired or revoked.")
        return _login(shared, problem)
    with acting(caller.actor):
        cookie = shared.sessions.open(caller.token)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(COOKIE, cookie, SECONDS, httponly=True, samesite="strict", secure=is_secure(request))
    return answer


@router.post("/logout")
async def logout(request: Request, visited: Visited, fields: Form) -> Response:
    """End the session, in this browser and on the server, and that at the identity provider if it opened this one."""
    url = await _provider_logout(request, visited) if await run_in_threadpool(_end, visited) else None
    return _without_session(_to_login() if url is None else onward(url, "You are logged out here."), request)


def _end(visited: Visit) -> bool:
    """End a session; return whether an identity provider vouched for its user."""
    caller, shared = visited.caller, visited.shared
    if caller.session is not None:
        with acting(caller.actor):
            shared.sessions.end(caller.session)
        shared.callers.forget(caller.session)
    return shared.provider is not None and shared.store.person_of_token(caller.token) is not None


async def _provider_logout(request: Request, visited: Visit) -> str | None:
    provider = visited.shared.provider
    try:
        return await provider.logout_url(own_url(request, "/login")) if provider is not None else None
    except ProviderError as error:  # the session here has ended, which must not depend on it
        _LOG.error("the identity provider failed: %s", error)
        return None


@router.get("/")
def list_page(visited: Visited, cursor: str | None = None) -> Response:
    """The list of studies, and the form for a new one."""
    return _list(visited, cursor)


@router.get("/parts/studies")
def list_part(visited: Visited, cursor: str | None = None, digest: str = "", states: str = "") -> Response:
    """The list of studies, or 204 if it has not changed."""
    part = _listed(visited, cursor)
    if part["digest"] == digest:
        return Response(status_code=204)  # htmx then leaves the part as it is, with focus and selection
    # Only states are announced to screen readers; progress changes every second.
    changed = [study for study in part["states"].split() if study not in states.split()]
    announcement = "; ".join(study.replace(":", " is ") for study in changed) if states else ""
    return _rendered("list_part", **part, caller=visited.caller, announcement=announcement)


@router.post("/studies")
def submit(visited: Visited, fields: Form) -> Response:
    """Submit a study."""
    name, text, chosen = (fields.get(key, "").strip() for key in ("name", "yaml", "bundled"))
    try:
        document = _chosen(chosen, text)
        document = assigned(document, [f"name={json.dumps(name)}"]) if name else document
        request_body.require_within_limits(document)
        key = fields.get("key", "")[:100] or None
        row = studies.submit(visited.shared, visited.caller, document, key, text=None if chosen else text)
    except (RequestError, StudyError, StoreError) as error:
        return _list(visited, None, visited.shared.paths.error(error), {"name": name, "yaml": text, "bundled": chosen})
    return RedirectResponse(f"/studies/{row.study}", 303)


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
    return _rendered("study_part", **part, announcement=f"{name} is {now}" if state and state != now else "")


@router.post("/studies/{name}/cancel")
def cancel(visited: Visited, name: str, fields: Form) -> Response:
    """Cancel a study."""
    return _done(visited, name, lambda: studies.cancel(visited.shared, visited.caller, name))


@router.post("/studies/{name}/delete")
def delete(visited: Visited, name: str, fields: Form) -> Response:
    """Delete a study."""
    return _done(visited, name, lambda: deletion_routes.delete(visited.shared, visited.caller, name), then="/deleted")


@router.get("/deleted")
def deleted_page(visited: Visited) -> Response:
    """Deleted studies that can be restored."""
    rows = deletion_routes.list_deleted(visited.shared, visited.caller)
    return _rendered("deleted", deleted=rows, **_frame(visited))


@router.post("/deleted/{name}/restore")
def restore(visited: Visited, name: str, fields: Form) -> Response:
    """Restore a deleted study."""
    auth.require_write(visited.caller)
    deletion_routes.restore_study(visited.shared, visited.caller, name)
    return RedirectResponse(f"/studies/{name}", 303)


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


def failure(error: RequestError) -> Response:
    """Return the page that shows an error which no other page has a place for."""
    answer = _rendered("failure", error.status, problem=error.problem, caller=None)
    answer.headers.update(error.headers)
    return answer


def logged_out(request: Request, error: Exception) -> Response:
    """Redirect to the login form; a header makes htmx redirect the page instead of the part that it refreshes."""
    if request.headers.get("hx-request"):
        return Response(status_code=200, headers={"HX-Redirect": "/login"})
    return _without_session(_to_login(), request)


def onward(url: str, message: str) -> Response:
    """Return a page that leads on by itself.

    A redirect would not do. On the way back from the identity provider, browsers count what they are redirected to as
    a request of the provider's site, and do not send the cookie of the session, which is strict; and they apply
    `form-action` of the policy to where a form is redirected.
    """
    return _rendered("onward", url=url, message=message, caller=None)


def own_url(request: Request, path: str) -> str:
    """Return the address of a path of this page as the browser knows it, of which a trusted proxy may have told."""
    return f"{request.url.scheme}://{request.url.netloc}{path}"


def _login(shared: Service, problem: Problem | None) -> Response:
    provider = None if shared.provider is None else shared.provider.settings.name
    return _rendered("login", 200 if problem is None else 401, problem=problem, caller=None, provider=provider)


def _to_login() -> Response:
    return RedirectResponse("/login", 303)


def _without_session(answer: Response, request: Request) -> Response:
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=is_secure(request))
    return answer


def is_secure(request: Request) -> bool:
    """Whether the browser uses TLS; a trusted proxy says so, whose headers the server has put in place of its own."""
    return request.url.scheme == "https"


def _done(visited: Visit, name: str, action: Callable[[], object], text: str = "", *, then: str = "") -> Response:
    try:
        action()
    except (RequestError, StudyError, StoreError) as error:
        request_error = visited.shared.paths.error(error)
        if request_error.status == 404:  # there is no page to show the error in
            raise
        return _study(visited, name, request_error, text)
    return RedirectResponse(then or f"/studies/{name}", 303)


def _chosen(name: str, text: str) -> dict[str, Any]:
    """Return the bundled study of a name, or the one written as YAML."""
    if name:
        known = bundled()
        if name not in known:
            raise RequestError(422, "invalid_study", f"there is no bundled study {name[:80]!r}", key="bundled")
        return read_document(known[name])
    if not text:
        raise RequestError(422, "invalid_study", "choose a bundled study, or enter one as YAML", key="yaml")
    return request_body.document(text.encode(), "application/yaml")


def _list(
    visited: Visit, cursor: str | None, error: RequestError | None = None, fields: Mapping[str, str] | None = None
) -> Response:
    filled = {"name": "", "yaml": "", "bundled": ""} | dict(fields or {})
    return _rendered(
        "list",
        error.status if error else 200,
        **_listed(visited, cursor),
        **_frame(visited),
        problem=error.problem if error else None,
        form=filled,
        key=secrets.token_urlsafe(16),  # sent with the form: pressing the button twice submits one study
        bundled=_questions(),
        announcement="",
    )


def _listed(visited: Visit, cursor: str | None) -> dict[str, Any]:
    page = studies.page(visited.shared, visited.caller, limit=_LINES, cursor=cursor)
    lines = [Line(study, _share(visited, study)) for study in page.studies]
    states = " ".join(f"{line.study.name}:{line.study.state}" for line in lines)
    digest = _digest(lines)
    query = {"digest": digest, "states": states} | ({"cursor": cursor} if cursor else {})
    return {"lines": lines, "next": page.next, "digest": digest, "states": states, "query": urlencode(query)}


def _share(visited: Visit, study: StudyView) -> float | None:
    if study.state in ("queued", "cancelled", "failed"):
        return None
    return 1.0 if study.state == "complete" else visited.shared.watcher.status(study.name).progress.share


def _study(visited: Visit, name: str, error: RequestError | None = None, text: str = "") -> Response:
    problem = error.problem if error else None
    part = _study_status(visited, name)
    status = error.status if error else 200
    return _rendered(
        "study", status, **{**part, **_frame(visited)}, problem=problem, form={"assignments": text}, announcement=""
    )


def _study_status(visited: Visit, name: str) -> dict[str, Any]:
    shared = visited.shared
    snapshot = studies.status(shared, visited.caller, name)
    progress, row = snapshot.progress, snapshot.row
    question = str(row.document.get("question", ""))
    arms = {"share": progress.share, "arms": progress.arms}
    fields = study_fields(row, retention_days=shared.settings.retention_days)
    detail = StudyDetail(**fields, question=question, **arms, study={})
    models = study_files.models(shared, visited.caller, name) if row.ended else []
    results = row.state == "complete" or Folder(shared.settings.folder(row.study)).report.is_file()
    shown = {
        "study": detail,
        "models": models,
        "results": results,
        "links": _links(shared, snapshot),
        "live": not row.ended,
    }
    digest = _digest(shown)
    query = urlencode({"digest": digest, "state": row.state})
    may = visited.caller.writes and may_change(visited.caller, row)
    teams = {"shares": shared.store.shares(name), "teams": sorted(_teams(visited)) if may else []}
    own = {"caller": visited.caller, "proof": visited.proof, "may_change": may, **teams}
    return {**shown, **own, "digest": digest, "query": query}


def _teams(visited: Visit) -> Mapping[str, object]:
    return visited.shared.store.teams(None if visited.caller.administers else visited.caller.owner)


def _links(shared: Service, snapshot: Snapshot) -> dict[str, str]:
    """Return links to the MLflow pages and the Ray job of a study, if their URLs are configured."""
    links = {}
    if shared.settings.mlflow_url and snapshot.events:
        try:
            projections = shared.store.projections(snapshot.row.study, "mlflow")
        except NotFound:
            projections = ()
        run = next((row.external_id for row in projections if row.trial is None), None)
        if run is not None:
            links["MLflow run"] = f"{shared.settings.mlflow_url}/#/runs/{run}"
            pages = full_addresses(shared.settings, pages_of(shared.store, snapshot.row.study))
            links |= {f"{name} in MLflow": address for name, address in pages.items()}
    if shared.settings.ray_url and snapshot.row.job:
        links["Ray job"] = f"{shared.settings.ray_url}/#/jobs/{snapshot.row.job}"
    return links


def _frame(visited: Visit) -> dict[str, Any]:
    settings = visited.shared.settings
    return {
        "caller": visited.caller,
        "proof": visited.proof,
        "mlflow_url": settings.mlflow_url,
        "ray_url": settings.ray_url,
    }


@cache
def _questions() -> dict[str, str]:
    return {name: read_document(path).get("question", "") for name, path in bundled().items()}


def _digest(shown: object) -> str:
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]  # only to notice changes, so that 64 bits are enough


def _rendered(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = _templates().get_template(f"service_{template}.html.j2").render(**values)
    return HTMLResponse(text, status)
