"""Errors of one shape: what refuses a request, whoever found it, becomes `{"error": {...}}` with its status."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from services.api.schemas import ErrorDocument, Problem
from services.files.remote import ArtifactError
from services.store import NotFound, QuotaExceeded, StateError, StoreError, StoreUnreachable, StudyConflict
from services.study_config.schema import StudyError, StudyNotFound

MOST_SHOWN = 200
RETRY_SECONDS = 5
SOURCE = "study"
_LOG = logging.getLogger("nas_blockout.api")
_KEYED = re.compile(r"(?:study: )?(?:--set )?(?P<key>[A-Za-z_][\w-]*(?:\.[\w-]+)*): (?P<rule>.*)", re.DOTALL)
_FOUND = re.compile(r", got (?P<value>.*?)(?:; .*)?$", re.DOTALL)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_REMEDIES = {404: "see /openapi.json for what there is", 405: "see /openapi.json for what is allowed"}


class Refused(Exception):
    """A request is refused.

    Args:
        status: Of the answer.
        code: Kind of the problem, for programs.
        message: For people.
        key: What is meant, if it has a name.
        value: What was found.
        remedy: What to do.
        headers: Further headers of the answer.
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
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        shown = None if value is None else short(value)
        self.problem = Problem(code=code, message=plain(message), key=key, value=shown, remedy=remedy)


def short(value: object) -> str:
    """Return a value as a short text that JSON and a terminal can show."""
    text = plain(value if isinstance(value, str) else repr(value))
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def plain(text: str) -> str:
    """Return a text without halves of surrogate pairs, which UTF-8 has not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def not_found(what: str) -> Refused:
    """Return the refusal of what is not there, or is somebody else's, which look alike."""
    return Refused(404, "not_found", f"there is no {what}", remedy="GET /v1/studies lists your studies")


def of_study(error: StudyError) -> Refused:
    """Return the refusal of a study, with the key, the value and the near match that its message names."""
    text = str(error).removeprefix(f"{SOURCE}: ")
    keyed = _KEYED.match(str(error)) if not text.startswith("no valid YAML") else None
    found = _FOUND.search(text)
    _, near, remedy = text.rpartition("; ")
    return Refused(
        422,
        "invalid_study",
        text,
        key=keyed["key"] if keyed else None,
        value=found["value"] if found else None,
        remedy=remedy if near else None,
    )


def respond(refused: Refused) -> JSONResponse:
    """Return the answer to a refused request."""
    document = ErrorDocument(error=refused.problem).model_dump()
    return JSONResponse(document, refused.status, headers=refused.headers)


def translated(error: Exception) -> Refused:
    """Return the refusal that an error means; of one that nobody foresaw only that there was one."""
    if isinstance(error, Refused):
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
            return _refused(status, code, str(error), retry)
    if isinstance(error, StoreError):
        _LOG.error("the store failed: %s", error)
        words = "cannot be reached" if isinstance(error, StoreUnreachable) else "cannot be used"
        return _refused(503, "unavailable", f"the database {words} now; nothing was changed; try again", RETRY_SECONDS)
    if isinstance(error, ArtifactError):
        _LOG.error("shared storage failed: %s", error)
        return _refused(503, "unavailable", "the files of studies cannot be reached now; try again", RETRY_SECONDS)
    return Refused(500, "internal", "something went wrong here; the log of the service says what")


def handle(app: FastAPI) -> None:
    """Let an application answer every error in the one shape."""

    def known(request: Request, error: Exception) -> Response:
        return respond(translated(error))

    for kind in (Refused, StudyError, StudyNotFound, StoreError, ArtifactError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain_http)


def _refused(status: int, code: str, message: str, retry: int | None) -> Refused:
    _, found, remedy = message.rpartition("; ")
    headers = {"Retry-After": str(retry)} if retry else {}
    return Refused(status, code, message, remedy=remedy if found else None, headers=headers)


def _invalid(request: Request, error: Exception) -> Response:
    """Answer parameters that break a rule; the first of several is told."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"][1:]) or None
    found: Any = first.get("input")
    value = None if first["type"] == "missing" or found is None else short(found)
    got = "" if value is None else f", got {value}"
    message = f"{key}: {first['msg']}{got}" if key else f"{first['msg']}{got}"
    return respond(Refused(422, "invalid_request", message, key=key, value=value, remedy=_REMEDIES[404]))


def _plain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    word = {404: "nothing is here", 405: f"{short(request.method)} is not allowed here"}.get(status, str(error.detail))
    refused = Refused(status, _CODES.get(status, "refused"), word, remedy=_REMEDIES.get(status), headers=error.headers)
    return respond(refused)


def raw(refused: Refused) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of the answer to a refused request, for code below the framework."""
    body = json.dumps(ErrorDocument(error=refused.problem).model_dump()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    return [(name.encode(), value.encode()) for name, value in headers.items()], body
