"""Error responses: every error of a request becomes `{"error": {...}}` with its status code."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from services.api.schemas import BrokenRule, ErrorDocument, Problem
from services.files.remote import ArtifactError
from services.store import NotFound, QuotaExceeded, StateError, StoreError, StoreUnreachable, StudyConflict
from services.study_config.errors import StudyError, StudyNotFound

MAX_SHOWN = 200
RETRY_SECONDS = 5
SOURCE = "study"
_LOG = logging.getLogger("nas_blockout.api")
# Messages of the store and of study files follow one form, "key: rule, got value; remedy", which is taken apart here.
_KEYED = re.compile(r"(?:study: )?(?:--set )?(?P<key>[A-Za-z_][\w-]*(?:\.[\w-]+)*): (?P<rule>.*)", re.DOTALL)
_FOUND = re.compile(r", got (?P<value>.*?)(?:; .*)?$", re.DOTALL)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_REMEDIES = {404: "see /openapi.json for all paths", 405: "see /openapi.json for the allowed methods"}


class RequestError(Exception):
    """An error that ends a request with an error response.

    Args:
        status: HTTP status code.
        code: Stable identifier of the problem, for programs.
        message: Description, for people.
        key: Name of the key, parameter or header concerned.
        value: The offending value.
        remedy: What to do.
        headers: Additional response headers.
        errors: Every rule that a study breaks.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        key: str | None = None,
        value: object = None,
        remedy: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[BrokenRule] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        shown = None if value is None else short(value)
        self.problem = Problem(
            code=code,
            message=plain(message),
            key=key,
            value=shown,
            remedy=remedy,
            errors=list(errors),
        )


def short(value: object) -> str:
    """Return a value as a short string that JSON and a terminal can show."""
    text = plain(value if isinstance(value, str) else repr(value))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def plain(text: str) -> str:
    """Return a string without lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def not_found(what: str) -> RequestError:
    """Return the 404 error, the same for what does not exist and for what another owner has."""
    return RequestError(404, "not_found", f"there is no {what}", remedy="GET /v1/studies lists your studies")


def of_study(error: StudyError) -> RequestError:
    """Return the error for an invalid study: the first broken rule with its key, value and remedy, and all of them."""
    if not error.violations:
        return _of_text(str(error))
    broken = [
        BrokenRule(
            message=plain(str(violation)),
            key=plain(violation.key) or None,
            value=None if violation.value is None else short(violation.value),
            remedy=None if violation.remedy is None else plain(violation.remedy),
            line=violation.line,
        )
        for violation in error.violations
    ]
    first = broken[0]
    refused = RequestError(
        422,
        "invalid_study",
        first.message,
        key=first.key,
        value=first.value,
        remedy=first.remedy,
        errors=broken,
    )
    unchecked = None if error.unchecked is None else plain(error.unchecked)
    refused.problem = refused.problem.model_copy(update={"line": first.line, "unchecked": unchecked})
    return refused


def _of_text(message: str) -> RequestError:
    """Return the error for a study that cannot be read, or for a change to it, with the key that its message names."""
    text = message.removeprefix(f"{SOURCE}: ")
    keyed = _KEYED.match(text) if not text.startswith("not valid YAML") else None
    found = _FOUND.search(text)
    _, near, remedy = text.rpartition("; ")
    return RequestError(
        422,
        "invalid_study",
        text,
        key=keyed["key"] if keyed else None,
        value=found["value"] if found else None,
        remedy=remedy if near else None,
    )


def respond(error: RequestError) -> JSONResponse:
    """Return the response for an error."""
    document = ErrorDocument(error=error.problem).model_dump()
    return JSONResponse(document, error.status, headers=error.headers)


def translated(error: Exception) -> RequestError:
    """Return an error as a `RequestError`; one that was not anticipated reveals nothing of itself."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, StudyError):
        return of_study(error)
    kinds: tuple[tuple[type[Exception], int, str, int | None], ...] = (
        (QuotaExceeded, 429, "too_many_studies", RETRY_SECONDS),
        (StudyConflict, 409, "conflict", None),
        (StateError, 409, "wrong_state", None),
        (NotFound, 404, "not_found", None),
        (StudyNotFound, 404, "not_found", None),
    )
    for kind, status, code, retry in kinds:
        if isinstance(error, kind):
            return _request_error(status, code, str(error), retry)
    # Last, since those above are store errors, too. What failed is for the log: it may name hosts and files.
    if isinstance(error, StoreError):
        _LOG.error("the store failed: %s", error)
        words = "cannot be reached" if isinstance(error, StoreUnreachable) else "cannot be used"
        return _request_error(503, "unavailable", f"the database {words}; try again", RETRY_SECONDS)
    if isinstance(error, ArtifactError):
        _LOG.error("shared storage failed: %s", error)
        return _request_error(503, "unavailable", "shared storage cannot be reached; try again", RETRY_SECONDS)
    return RequestError(500, "internal", "internal error; see the log of the service")


def explaining(page: Callable[[RequestError], Response]) -> Callable[[Request, Exception], Response]:
    """Return what turns any error of a request into its response: JSON, or a page for a browser that asked for one.

    Args:
        page: Renders an error as a page.
    """

    def explain(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            found = _invalid(error)
        elif isinstance(error, HTTPException):
            found = _plain_http(request, error)
        else:
            found = request.app.state.service.paths.error(error)
        return page(found) if _wants_page(request) else respond(found)

    return explain


def handle(app: FastAPI, explain: Callable[[Request, Exception], Response]) -> None:
    """Register a handler for all errors that are expected."""
    for kind in (
        *(RequestError, StudyError, StudyNotFound, StoreError, ArtifactError),
        *(RequestValidationError, HTTPException),
    ):
        app.add_exception_handler(kind, explain)


def _wants_page(request: Request) -> bool:
    # Parts of the page are fetched by its script, which has no place for a page.
    in_page = not request.scope["path"].startswith("/v1/") and "hx-request" not in request.headers
    return in_page and "text/html" in request.headers.get("accept", "")


def _request_error(status: int, code: str, message: str, retry: int | None) -> RequestError:
    # By convention the last clause of our messages says what to do.
    _, separator, remedy = message.rpartition("; ")
    headers = {"Retry-After": str(retry)} if retry else {}
    return RequestError(status, code, message, remedy=remedy if separator else None, headers=headers)


def _invalid(error: RequestValidationError) -> RequestError:
    """Return the first error of invalid parameters."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][1:]) or None
    sent: Any = first.get("input")
    value = None if first["type"] == "missing" or sent is None else short(sent)
    got = "" if value is None else f", got {value}"
    message = f"{key}: {first['msg']}{got}" if key else f"{first['msg']}{got}"
    return RequestError(422, "invalid_request", message, key=key, value=value, remedy=_REMEDIES[404])


def _plain_http(request: Request, error: HTTPException) -> RequestError:
    status = error.status_code
    message = {404: "there is nothing at this path", 405: f"{short(request.method)} is not allowed at this path"}.get(
        status, str(error.detail)
    )
    return RequestError(
        status, _CODES.get(status, "refused"), message, remedy=_REMEDIES.get(status), headers=error.headers
    )


def raw(error: RequestError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of the response for an error, for code below the framework."""
    body = json.dumps(ErrorDocument(error=error.problem).model_dump()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    return [(name.encode(), value.encode()) for name, value in headers.items()], body
