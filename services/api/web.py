"""The web page: sessions, forms, the list of studies; `pages` has the others. Refreshed by htmx, usable without it."""

import hashlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jinja2
from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from services.api import auth, studies
from services.api.administration import deletion_routes
from services.api.caches.token_cache import Caller
from services.api.errors import RequestError
from services.api.schemas import Problem, StudyView
from services.api.sessions import COOKIE, SECONDS
from services.api.sign_in.provider_requests import ProviderError
from services.api.state import Service
from services.api.studies import Body, Shared
from services.store import NotFound, acting

STATIC = {"htmx.min.js": "text/javascript", "service.js": "text/javascript", "service.css": "text/css"}
_FOLDER = Path(__file__).parents[1]
_MAX_FIELDS = 20
_LINES = 20
_SHORT_SECONDS, _HOUR_MINUTES, _LONG_HOURS = 90, 60, 48
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
    made.filters["duration"] = duration
    return made


def duration(seconds: float) -> str:
    """Return a duration for people: ``45 s``, ``3 min``, ``2 h 05 min``, ``3 days``."""
    minutes = round(seconds / 60)
    if seconds < _SHORT_SECONDS:
        return f"{max(1, round(seconds))} s"
    if minutes < _HOUR_MINUTES:
        return f"{minutes} min"
    hours, rest = divmod(minutes, _HOUR_MINUTES)
    return f"{hours} h {rest:02} min" if hours < _LONG_HOURS else f"{round(hours / 24)} days"


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
    """One of the files that the page needs."""
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
def list_page(visited: Visited, cursor: str | None = None, command_line: str | None = None) -> Response:
    """The list of studies."""
    return _list(visited, cursor, command_line)


@router.get("/parts/studies")
def list_part(
    visited: Visited, cursor: str | None = None, command_line: str | None = None, digest: str = "", states: str = ""
) -> Response:
    """The list of studies, or 204 if it has not changed."""
    part = _listed(visited, cursor, command_line)
    if part["digest"] == digest:
        return Response(status_code=204)  # htmx then leaves the part as it is, with focus and selection
    # Only states are announced to screen readers; progress changes every second.
    changed = [study for study in part["states"].split() if study not in states.split()]
    announcement = "; ".join(study.replace(":", " is ") for study in changed) if states else ""
    return rendered("list_part", **part, caller=visited.caller, announcement=announcement)


@router.get("/deleted")
def deleted_page(visited: Visited) -> Response:
    """Deleted studies that can be restored."""
    rows = deletion_routes.list_deleted(visited.shared, visited.caller)
    return rendered("deleted", here="deleted", deleted=rows, **frame(visited))


@router.post("/deleted/{name}/restore")
def restore(visited: Visited, name: str, fields: Form) -> Response:
    """Restore a deleted study."""
    auth.require_write(visited.caller)
    deletion_routes.restore_study(visited.shared, visited.caller, name)
    return RedirectResponse(f"/studies/{name}", 303)


def failure(error: RequestError) -> Response:
    """Return the page that shows an error which no other page has a place for."""
    answer = rendered("failure", error.status, problem=error.problem, caller=None)
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
    return rendered("onward", url=url, message=message, caller=None)


def own_url(request: Request, path: str) -> str:
    """Return the address of a path of this page as the browser knows it, of which a trusted proxy may have told."""
    return f"{request.url.scheme}://{request.url.netloc}{path}"


def _login(shared: Service, problem: Problem | None) -> Response:
    provider = None if shared.provider is None else shared.provider.settings.name
    return rendered("login", 200 if problem is None else 401, problem=problem, caller=None, provider=provider)


def _to_login() -> Response:
    return RedirectResponse("/login", 303)


def _without_session(answer: Response, request: Request) -> Response:
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=is_secure(request))
    return answer


def is_secure(request: Request) -> bool:
    """Whether the browser uses TLS; a trusted proxy says so, whose headers the server has put in place of its own."""
    return request.url.scheme == "https"


def _list(visited: Visit, cursor: str | None, command_line: str | None) -> Response:
    return rendered("list", here="studies", **_listed(visited, cursor, command_line), **frame(visited), announcement="")


def _listed(visited: Visit, cursor: str | None, command_line: str | None) -> dict[str, Any]:
    """Return what the list shows: what was submitted, and what was run on the command line, each in pages."""
    page = studies.page(visited.shared, visited.caller, limit=_LINES, cursor=cursor)
    beside = studies.page(visited.shared, visited.caller, limit=_LINES, cursor=command_line, origin="command-line")
    lines = [Line(study, _share(visited, study)) for study in page.studies]
    others = [Line(study, _share(visited, study)) for study in beside.studies]
    states = " ".join(f"{line.study.name}:{line.study.state}" for line in (*lines, *others))
    shown = digest((lines, others))
    pages = {name: value for name, value in (("cursor", cursor), ("command_line", command_line)) if value}
    return {
        "lines": lines,
        "next": page.next,
        "command_line_lines": others,
        "command_line_next": beside.next,
        "digest": shown,
        "states": states,
        "query": urlencode({"digest": shown, "states": states, **pages}),
    }


def _share(visited: Visit, study: StudyView) -> float | None:
    if study.state == "complete":
        return 1.0
    if study.origin == "service" and study.state in ("queued", "cancelled", "failed"):
        return None
    try:
        return visited.shared.watcher.status(study.name).progress.share
    except NotFound:  # deleted or submitted meanwhile
        return None


def frame(visited: Visit) -> dict[str, Any]:
    """Return what the frame of every page shows of its user and of the services beside this one."""
    settings = visited.shared.settings
    return {
        "caller": visited.caller,
        "proof": visited.proof,
        "mlflow_url": settings.mlflow_url,
        "ray_url": settings.ray_url,
    }


def digest(shown: object) -> str:
    """Return a hash of what a part of a page shows, by which its script asks whether it has changed."""
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]  # only to notice changes, so that 64 bits are enough


def rendered(template: str, status: int = 200, *, here: str = "", **values: Any) -> HTMLResponse:
    """Return a page or a part of one.

    Args:
        template: Name of its template.
        status: Of the response.
        here: Which link of the navigation leads to it.
        values: What the template shows.
    """
    text = _templates().get_template(f"service_{template}.html.j2").render(here=here, **values)
    return HTMLResponse(text, status)
