"""The page: rendered here, refreshed by htmx and of use without it. Log in with a token, submit, watch, download."""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jinja2
from fastapi import APIRouter, Depends, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.api import auth, studies, study_files
from services.api.caches.status_cache import Snapshot
from services.api.caches.token_cache import Caller
from services.api.errors import Refused, translated
from services.api.requests import request_body
from services.api.schemas import Problem, StudyDetail, StudyView, study_fields
from services.api.sessions import COOKIE, SECONDS, Session
from services.api.state import Service
from services.api.studies import Body, Shared
from services.files.study_dir import Folder
from services.store import NotFound, QueueRow, StoreError
from services.study_config.overrides import assigned
from services.study_config.schema import StudyError, bundled, read, read_document

STATIC = {"htmx.min.js": "text/javascript", "service.css": "text/css"}
_FOLDER = Path(__file__).parents[1]
_MOST_FIELDS = 20
_LINES = 20
_SITES = frozenset({"same-origin", "none"})

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who has logged in."""

    shared: Service
    caller: Caller
    session: Session


@dataclass(frozen=True, slots=True)
class Line:
    """A study in the list, and the share of its budget that is spent, if it has begun."""

    study: StudyView
    share: float | None


class LoggedOut(Exception):
    """Nobody has logged in."""


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_FOLDER / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


@cache
def _static(name: str) -> tuple[bytes, str]:
    content = (_FOLDER / "static" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def visit(request: Request, shared: Shared) -> Visit:
    """Return who visits the page.

    Raises:
        LoggedOut: Nobody has logged in, or the token has ended.
    """
    session = auth.session_of(request)
    caller = shared.callers.ask(session.token) if session else None
    if session is None or caller is None:
        raise LoggedOut
    return Visit(shared, caller, session)


Visited = Annotated[Visit, Depends(visit)]


def _form(content: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(content.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        raise Refused(422, "malformed_body", "a form of this page was expected", remedy="use the page") from None
    return {name: values[0].replace("\r\n", "\n") for name, values in fields.items()}


def _require_own(request: Request) -> None:
    """Refuse a form that another site has sent."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    if site not in _SITES or (origin is not None and urlsplit(origin).netloc != request.headers.get("host")):
        raise Refused(403, "other_site", "the form was sent by another site", remedy="open the page itself")


def form(request: Request, visited: Visited, content: Body) -> dict[str, str]:
    """Return the fields of a form that this page has made for this session.

    Raises:
        Refused: It was not.
    """
    _require_own(request)
    fields = _form(content)
    if not visited.shared.signer.proves(visited.session, fields.get("proof", "")):
        raise Refused(403, "other_site", "the form is not one of this session", remedy="load the page again")
    return fields


Form = Annotated[dict[str, str], Depends(form)]


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """One of the two files that the page needs."""
    if name not in STATIC:
        raise Refused(404, "not_found", "nothing is here")
    content, tag = _static(name)
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=STATIC[name], headers=headers)


@router.get("/login")
def login_page() -> Response:
    """The form to log in with."""
    return _rendered("login", problem=None, caller=None)


@router.post("/login")
def login(request: Request, shared: Shared, content: Body) -> Response:
    """Open a session with a token."""
    _require_own(request)
    caller = shared.callers.ask(_form(content).get("token", "").strip())
    if caller is None:
        auth.count(shared, ("address", request.client.host if request.client else ""))
        problem = Problem(
            code="unauthorized", message="This token is not valid: it is mistyped, has ended or was revoked."
        )
        return _rendered("login", 401, problem=problem, caller=None)
    session = shared.signer.open(caller.token)
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, session.cookie, SECONDS, httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
def logout(fields: Form) -> Response:
    """Forget the session in this browser."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.get("/")
def list_page(visited: Visited, cursor: str | None = None) -> Response:
    """The list of studies, and the form for a new one."""
    return _list(visited, cursor)


@router.get("/parts/studies")
def list_part(visited: Visited, cursor: str | None = None, seen: str = "", states: str = "") -> Response:
    """The list of studies, if it is not the one that was seen."""
    part = _listed(visited, cursor)
    if part["digest"] == seen:
        return Response(status_code=204)
    changed = [each for each in part["states"].split() if each not in states.split()]
    said = "; ".join(each.replace(":", " is ") for each in changed) if states else ""
    return _rendered("list_part", **part, said=said)


@router.post("/studies")
def submit(visited: Visited, fields: Form) -> Response:
    """Give a study to the service."""
    name, text, chosen = (fields.get(key, "").strip() for key in ("name", "yaml", "bundled"))
    try:
        document = _chosen(chosen, text)
        document = assigned(document, [f"name={json.dumps(name)}"]) if name else document
        request_body.require_harmless(document)
        row = studies.give(visited.shared, visited.caller, document, fields.get("key", "")[:100] or None)
    except (Refused, StudyError, StoreError) as error:
        found = translated(error)
        return _list(visited, None, found, {"name": name, "yaml": text, "bundled": chosen})
    return RedirectResponse(f"/studies/{row.study}", 303)


@router.get("/studies/{name}")
def study_page(visited: Visited, name: str) -> Response:
    """One study."""
    return _study(visited, name)


@router.get("/parts/studies/{name}")
def study_part(visited: Visited, name: str, seen: str = "", state: str = "") -> Response:
    """Where a study stands, if that is not what was seen."""
    part = _standing(visited, name)
    if part["digest"] == seen:
        return Response(status_code=204)
    now = part["study"].state
    return _rendered("study_part", **part, said=f"{name} is {now}" if state and state != now else "")


@router.post("/studies/{name}/cancel")
def cancel(visited: Visited, name: str, fields: Form) -> Response:
    """Cancel a study."""
    return _done(visited, name, lambda: studies.cancel(visited.shared, visited.caller, name))


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


def logged_out(request: Request, error: Exception) -> Response:
    """Send somebody who has not logged in to the form, from within a part of a page too."""
    if request.headers.get("hx-request"):
        return Response(status_code=200, headers={"HX-Redirect": "/login"})
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _done(visited: Visit, name: str, action: Callable[[], QueueRow], text: str = "") -> Response:
    try:
        action()
    except (Refused, StudyError, StoreError) as error:
        found = translated(error)
        if found.status == 404:
            raise
        return _study(visited, name, found, text)
    return RedirectResponse(f"/studies/{name}", 303)


def _chosen(name: str, text: str) -> dict[str, Any]:
    """Return the bundled study of a name, or what was written."""
    if name:
        known = bundled()
        if name not in known:
            raise Refused(422, "invalid_study", f"there is no bundled study {name[:80]!r}", key="bundled")
        return read_document(known[name])
    if not text:
        raise Refused(422, "invalid_study", "choose a bundled study, or write one as YAML", key="yaml")
    return request_body.document(text.encode(), "application/yaml")


def _list(
    visited: Visit, cursor: str | None, refused: Refused | None = None, fields: Mapping[str, str] | None = None
) -> Response:
    filled = {"name": "", "yaml": "", "bundled": ""} | dict(fields or {})
    return _rendered(
        "list",
        refused.status if refused else 200,
        **_listed(visited, cursor),
        **_outer(visited),
        problem=refused.problem if refused else None,
        form=filled,
        key=secrets.token_urlsafe(16),
        bundled=_questions(),
        said="",
    )


def _listed(visited: Visit, cursor: str | None) -> dict[str, Any]:
    found = studies.page(visited.shared, visited.caller, limit=_LINES, cursor=cursor)
    lines = [Line(study, _share(visited, study)) for study in found.studies]
    states = " ".join(f"{line.study.name}:{line.study.state}" for line in lines)
    digest = _digest(lines)
    query = {"seen": digest, "states": states} | ({"cursor": cursor} if cursor else {})
    return {"lines": lines, "next": found.next, "digest": digest, "states": states, "query": urlencode(query)}


def _share(visited: Visit, study: StudyView) -> float | None:
    if study.state in ("queued", "cancelled", "failed"):
        return None
    return 1.0 if study.state == "complete" else visited.shared.watcher.status(study.name).progress.share


def _study(visited: Visit, name: str, refused: Refused | None = None, text: str = "") -> Response:
    problem = refused.problem if refused else None
    part = _standing(visited, name)
    status = refused.status if refused else 200
    return _rendered(
        "study", status, **{**part, **_outer(visited)}, problem=problem, form={"assignments": text}, said=""
    )


def _standing(visited: Visit, name: str) -> dict[str, Any]:
    shared = visited.shared
    found = studies.status(shared, visited.caller, name)
    progress, row = found.progress, found.row
    question = str(row.document.get("question", ""))
    arms = {"share": progress.share, "arms": progress.arms}
    detail = StudyDetail(**study_fields(row), question=question, **arms, study={})
    models = study_files.models(shared, visited.caller, name) if row.ended else []
    results = row.state == "complete" or Folder(shared.settings.folder(row.study)).report.is_file()
    shown = {
        "study": detail,
        "models": models,
        "results": results,
        "links": _links(shared, found),
        "live": not row.ended,
    }
    digest = _digest(shown)
    query = urlencode({"seen": digest, "state": row.state})
    own = {"caller": visited.caller, "proof": shared.signer.proof(visited.session)}
    return {**shown, **own, "digest": digest, "query": query}


def _links(shared: Service, found: Snapshot) -> dict[str, str]:
    """Return where the runs and the job of a study are seen, if such places are set."""
    links = {}
    if shared.settings.mlflow_url and found.events:
        try:
            told = shared.store.projections(found.row.study, "mlflow")
        except NotFound:
            told = ()
        run = next((each.external_id for each in told if each.trial is None), None)
        if run is not None:
            links["MLflow run"] = f"{shared.settings.mlflow_url}/#/runs/{run}"
    if shared.settings.ray_url and found.row.job:
        links["Ray job"] = f"{shared.settings.ray_url}/#/jobs/{found.row.job}"
    return links


def _outer(visited: Visit) -> dict[str, Any]:
    settings = visited.shared.settings
    return {
        "caller": visited.caller,
        "proof": visited.shared.signer.proof(visited.session),
        "mlflow_url": settings.mlflow_url,
        "ray_url": settings.ray_url,
    }


@cache
def _questions() -> dict[str, str]:
    return {name: read(path).question for name, path in bundled().items()}


def _digest(shown: object) -> str:
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]


def _rendered(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = _templates().get_template(f"service_{template}.html.j2").render(**values)
    return HTMLResponse(text, status)
