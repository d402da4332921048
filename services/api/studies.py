"""Routes of studies: submit, list, show, follow, cancel, resume, extend. Nothing is trained here."""

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from services.api import auth
from services.api.administration.access import (
    NAME,
    changeable,
    earlier_studies,
    may_change,
    require_visible,
    sees_command_line,
)
from services.api.auth import Reader, Writer
from services.api.caches.status_cache import Snapshot
from services.api.caches.token_cache import Caller
from services.api.errors import SOURCE, RequestError
from services.api.event_stream import follow, has_received_end, streamed
from services.api.requests import request_body
from services.api.requests.submitted_study import check_networks, checked, checked_with_lines
from services.api.schemas import (
    Changes,
    ErrorDocument,
    Origin,
    Priority,
    State,
    StudyDetail,
    StudyPage,
    StudyView,
    study_fields,
    study_view,
)
from services.api.state import Service, service_of
from services.execution.extension import additions
from services.store import NotFound, QueueRow, QueueSummary, StateError, acting
from services.store.checked_values import MAX_INTEGER
from services.study_config.overrides import assigned
from services.study_config.resolution import stored_study
from services.study_config.resolved_study import Study
from services.study_config.searching.warm_starts import recalling

KEY_PATTERN = r"^[\x21-\x7e]{1,200}$"
_LOG = logging.getLogger("nas_blockout.api")
_EXAMPLE = """schema_version: 2
name: hello
question: Does dropout help with fifty digits?
data: {name: digits, train_samples: 50}
backbone: {name: convnet, channels: [4], hidden: [8]}
training: {epochs: 2, batch_size: 16}
budget: {sample_passes: 402}
retrain: {seeds: [0, 1]}
arms:
  dense: {}
  dropout: {method: {name: dropout}}
"""
_EXAMPLE_JSON = {
    "schema_version": 2,
    "name": "hello",
    "data": {"name": "digits", "train_samples": 50},
    "budget": {"sample_passes": 5360},
    "arms": {"dense": {}, "dropout": {"method": {"name": "dropout"}}},
}
_EXAMPLE_EVENT = """id: 1-8c1f0a9b2d3e
event: progress
data: {"state":"running","message":"","share":0.18,"arms":[]}

"""
_BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/yaml": {"schema": {"type": "object"}, "examples": {"hello": {"value": _EXAMPLE}}},
            "application/json": {
                "schema": {"$ref": "#/components/schemas/StudyConfig"},
                "examples": {"hello": {"value": _EXAMPLE_JSON}},
            },
        },
    }
}
_CHANGES = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Changes"}}},
    }
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error responses, including those that every route may return."""
    return {status: {"model": ErrorDocument} for status in (401, 422, 429, 503, *statuses)}


router = APIRouter(prefix="/v1/studies", tags=["studies"])
Body = Annotated[bytes, Depends(request_body.body)]


async def service(request: Request) -> Service:  # async, which saves a thread: there is nothing to wait for
    """Return the service that handles a request."""
    return service_of(request)


Shared = Annotated[Service, Depends(service)]


def submit(
    shared: Service,
    caller: Caller,
    document: Mapping[str, Any],
    key: str | None,
    *,
    text: str | None = None,
    priority: int = 0,
) -> QueueRow:
    """Validate and queue a study; a repeated request returns the study queued before.

    Args:
        shared: The service.
        caller: Who submits it.
        document: The study as plain values.
        key: The client's key of the request.
        text: The YAML that the study was read from, for the lines of its errors.
        priority: Of the caller's waiting studies, those with a higher one are first.
    """
    auth.require_write(caller)
    with recalling(earlier_studies(shared, caller)):
        study = checked_with_lines(document, shared.settings, text)
    adopt = sees_command_line(shared, caller)
    if adopt and (known := begun_without_service(shared, study)) is not None:
        return known
    with acting(caller.actor):
        row = shared.store.enqueue(
            study.name,
            document=study.to_json(),
            config_hash=study.hash,
            owner=caller.owner,
            key=key,
            source=dict(document),
            max_open=shared.settings.api_open_studies,
            priority=priority,
            adopt=adopt,
        )
    shared.lists.forget(caller.owner)  # after the write, so that no list is cached that lacks the study
    if row.new:
        _log_change(caller, "submitted", row)
    return row


def begun_without_service(shared: Service, study: Study) -> QueueRow | None:
    """Return the same study if it has been run to its end on the command line: there is nothing to queue.

    None if there is none, or if it has ended before its end: the service goes on with it.

    Raises:
        StateError: It is being run.
    """
    row = shared.store.command_line_study(study.name)
    if row is None or row.config_hash != study.hash:
        return None
    if row.state == "running":
        raise StateError(f"study {study.name!r} is being run on the command line; wait until it has ended")
    return row if row.state == "complete" else None


def view(shared: Service, row: QueueSummary) -> StudyView:
    """Return what the API shows of a study."""
    shown = replace(row, message=shared.paths.hide(row.message))
    return study_view(shown, retention_days=shared.settings.retention_days)


def status(shared: Service, caller: Caller, name: str) -> Snapshot:
    """Return the status of a study of the caller."""
    snapshot = shared.watcher.fresh(name)
    with suppress(NotFound):
        snapshot = snapshot or (shared.watcher.status(name) if NAME.fullmatch(name) else None)
    return require_visible(shared, caller, snapshot)


async def status_async(shared: Service, caller: Caller, name: str) -> Snapshot:
    """Return the status of a study of the caller; uses a thread only if the status is not cached."""
    cached = shared.watcher.fresh(name)
    if cached is not None and may_change(caller, cached.row):  # whether it is shared only the store knows
        return cached
    return await run_in_threadpool(status, shared, caller, name)


def page(
    shared: Service,
    caller: Caller,
    *,
    states: list[State] | None = None,
    owner: str | None = None,
    prefix: str = "",
    limit: int = 50,
    cursor: str | None = None,
    origin: Origin = "service",
) -> StudyPage:
    """Return a page of the studies that the caller may see, newest first."""
    if origin == "command-line":
        return _command_line_page(shared, caller, limit=limit, cursor=cursor)
    everybody = caller.administers or owner == caller.owner  # whose own studies need no look at teams
    before = _decoded(cursor) if cursor else None
    # One more than is shown, which says whether there is a next page.
    chosen = {"owner": owner, "visible_to": None if everybody else caller.owner}
    rows = shared.store.queue(states, **chosen, prefix=prefix, limit=limit + 1, before=before)
    return _paged(shared, rows, limit)


def _command_line_page(shared: Service, caller: Caller, *, limit: int, cursor: str | None) -> StudyPage:
    if not sees_command_line(shared, caller):
        return StudyPage(studies=[], next=None)
    before = _decoded(cursor) if cursor else None
    return _paged(shared, shared.store.command_line_studies(limit=limit + 1, before=before), limit)


def _paged(shared: Service, rows: Sequence[QueueSummary], limit: int) -> StudyPage:
    """Return a page of rows, of which there is one more if there is a next page."""
    more = len(rows) > limit
    return StudyPage(
        studies=[view(shared, row) for row in rows[:limit]], next=_encoded(rows[limit - 1].id) if more else None
    )


def cancel(shared: Service, caller: Caller, name: str) -> QueueRow:
    """Request the cancellation of a study of the caller."""
    auth.require_write(caller)
    study = changeable(shared, caller, name).study
    with acting(caller.actor):
        row = shared.store.request_cancel(study)
    return noted(shared, caller, "cancelled", row)


def resume(shared: Service, caller: Caller, name: str, *, priority: int | None = None) -> QueueRow:
    """Queue a failed or cancelled study of the caller again, behind those that wait."""
    auth.require_write(caller)
    study, most = changeable(shared, caller, name).study, shared.settings.api_open_studies
    with acting(caller.actor):
        row = shared.store.request_resume(study, max_open=most, priority=priority)
    return noted(shared, caller, "resumed", row)


def extend(shared: Service, caller: Caller, name: str, assignments: list[str]) -> QueueRow:
    """Extend a study of the caller and queue it again."""
    auth.require_write(caller)
    row = changeable(shared, caller, name)
    # Changes apply to what was submitted: in the resolved study, defaults that depend on a key are already filled in.
    source = assigned(row.source or row.document, assignments)
    request_body.require_within_limits(source)
    with recalling(earlier_studies(shared, caller)):
        study = checked(source, shared.settings, measured=False)
    if study.name != row.study:
        raise RequestError(
            409,
            "conflict",
            f"name must not change when a study is extended, got {study.name!r}",
            key="name",
            value=study.name,
        )
    if not additions(stored_study(row.document, source=SOURCE), study):
        return row  # the same request a second time
    # Only now: that a smaller budget is no extension says more than that it does not pay for a retraining.
    check_networks(study, source, shared.settings)
    with acting(caller.actor):
        extended = shared.store.request_resume(
            row.study,
            document=study.to_json(),
            config_hash=study.hash,
            source=source,
            max_open=shared.settings.api_open_studies,
        )
    return noted(shared, caller, "extended", extended)


@router.post(
    "",
    status_code=201,
    summary="Submit a study",
    openapi_extra=_BODIES,
    responses={
        200: {"model": StudyView, "description": "It had been submitted before."},
        **error_responses(403, 408, 409, 413, 415),
    },
)
def submit_study(
    request: Request,
    response: Response,
    shared: Shared,
    caller: Writer,
    content: Body,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=KEY_PATTERN,
            description="Chosen by the client, a new one for each study; a repeated request has no effect.",
        ),
    ] = None,
    priority: Annotated[Priority, Query()] = 0,
) -> StudyView:
    """Queue a study, as YAML or JSON. Submitting the same study again, or with the same key, has no effect.

    Nor has submitting one that has been run to its end on the command line, if the caller sees it. One that has not is
    gone on with.
    """
    kind = request_body.media_type(request)
    document = request_body.document(content, kind)
    text = content.decode("utf-8") if kind in request_body.YAML_TYPES else None
    row = submit(shared, caller, document, key, text=text, priority=priority)
    response.status_code = 201 if row.new else 200
    response.headers["Location"] = f"/v1/studies/{row.study}"
    return view(shared, row)


@router.get("", summary="List studies", response_model=StudyPage, responses=error_responses())
async def list_studies(
    shared: Shared,
    caller: Reader,
    state: Annotated[list[State] | None, Query(description="Only studies in this state; repeatable.")] = None,
    owner: Annotated[str | None, Query(max_length=64, description="Only studies of this owner.")] = None,
    prefix: Annotated[str, Query(pattern=r"^[a-z0-9-]{0,63}$", description="Only names that begin with this.")] = "",
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of studies per page.")] = 50,
    cursor: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9_=-]{1,40}$", description="`next` of the previous page.")
    ] = None,
    origin: Annotated[
        Origin,
        Query(description="`command-line`: studies that were run without the service, without the other filters."),
    ] = "service",
) -> Response:
    """List the studies of the token's owner, and those shared with a team of the owner, newest first, in pages.

    An administrator's token lists those of all owners. What was run on the command line is listed for administrators
    and the owner in `NAS_BLOCKOUT_COMMAND_LINE_OWNER`. The list is up to 0.5 s old.
    """

    def write() -> str:
        filters: dict[str, Any] = {"states": state, "owner": owner, "prefix": prefix, "origin": origin}
        studies = page(shared, caller, **filters, limit=limit, cursor=cursor)
        return studies.model_dump_json()

    query = (caller.administers, tuple(state or ()), owner, prefix, limit, cursor, origin)
    return _json(await shared.lists.answer(caller.owner, query, write))


@router.get("/{name}", summary="Show a study", response_model=StudyDetail, responses=error_responses(404))
def show_study(shared: Shared, caller: Reader, name: str) -> Response:
    """Show a study: the progress of each arm, and all settings."""
    snapshot = status(shared, caller, name)
    document = dict(snapshot.row.document)
    detail = StudyDetail(
        **study_fields(snapshot.row, retention_days=shared.settings.retention_days),
        question=str(document.get("question", "")),
        share=snapshot.progress.share,
        arms=snapshot.progress.arms,
        study=document,
    )
    return _json(detail.model_dump_json())


@router.get(
    "/{name}/events",
    summary="Follow a study",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"example": _EXAMPLE_EVENT}},
            "description": "Events `progress` and `happened`; `end` is the last.",
        },
        204: {"description": "The client has received the end, and should not reconnect."},
        **error_responses(404),
    },
)
async def follow_study(
    shared: Shared,
    caller: Reader,
    name: str,
    last: Annotated[
        str, Header(alias="Last-Event-ID", max_length=100, description="ID of the last event received.")
    ] = "",
) -> Response:
    """Follow a study by server-sent events until it has ended; continues after `Last-Event-ID`."""
    snapshot = await status_async(shared, caller, name)
    if has_received_end(last, snapshot):
        return Response(status_code=204)
    client = ("token", caller.token)
    if not shared.streams.enter(client):
        raise RequestError(
            429,
            "too_many_streams",
            "this token has reached its limit of open event streams",
            remedy="close another event stream",
            headers={"Retry-After": "5"},
        )

    async def events() -> Any:
        try:
            allowed = lambda: shared.callers.still_valid(caller)  # noqa: E731
            async for event in follow(
                shared.feeds,
                snapshot.row.study,
                last=last,
                allowed=allowed,
                check_seconds=shared.heartbeat_seconds,
            ):
                yield event
        finally:
            shared.streams.leave(client)

    return streamed(events(), heartbeat_seconds=shared.heartbeat_seconds)


@router.post("/{name}/cancel", summary="Cancel a study", responses=error_responses(403, 404, 409))
def cancel_study(shared: Shared, caller: Writer, name: str) -> StudyView:
    """Cancel a queued or running study; a running one is `cancelling` until the worker has stopped it."""
    return view(shared, cancel(shared, caller, name))


@router.post("/{name}/resume", summary="Resume a study", responses=error_responses(403, 404, 409))
def resume_study(
    shared: Shared, caller: Writer, name: str, priority: Annotated[Priority | None, Query()] = None
) -> StudyView:
    """Queue a failed or cancelled study again, behind those that wait; it continues where it stopped."""
    return view(shared, resume(shared, caller, name, priority=priority))


@router.post(
    "/{name}/extend",
    summary="Extend a study",
    openapi_extra=_CHANGES,
    responses=error_responses(403, 404, 408, 409, 413, 415),
)
def extend_study(request: Request, shared: Shared, caller: Writer, name: str, content: Body) -> StudyView:
    """Extend a study that has ended by a larger budget, more seeds or more arms; existing results are kept."""
    document = request_body.document(content, request_body.media_type(request))
    try:
        changes = Changes.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = f"{key}: {first['msg']}"
        raise RequestError(422, "invalid_request", message, key=key, remedy=_HOW_TO_EXTEND) from None
    return view(shared, extend(shared, caller, name, changes.assignments))


_HOW_TO_EXTEND = 'send {"assignments": ["budget.sample_passes=60000"]}'


def _json(text: str) -> Response:
    """Return a JSON response; given a model, FastAPI would validate it again, in another thread."""
    return Response(text, media_type="application/json")


def noted(shared: Service, caller: Caller, what: str, row: QueueRow) -> QueueRow:
    """Log a change to a study, and forget what is remembered of it."""
    shared.watcher.forget(row.study)
    for owner in {caller.owner, row.owner}:
        shared.lists.forget(owner)
    _log_change(caller, what, row)
    return row


def _log_change(caller: Caller, what: str, row: QueueRow) -> None:
    _LOG.info("%s %s %s by token %d", caller.owner, what, row.study, caller.token)


def _encoded(queue_id: int) -> str:
    return base64.urlsafe_b64encode(f"before {queue_id}".encode()).decode()


def _decoded(cursor: str) -> int:
    """Return the queue ID that a cursor encodes."""
    try:
        word, _, number = base64.urlsafe_b64decode(cursor).decode("ascii").partition(" ")
    except (binascii.Error, ValueError):
        word, number = "", ""
    if word != "before" or not number.isdecimal() or not 0 <= int(number[:20]) <= MAX_INTEGER:
        raise RequestError(
            422,
            "invalid_request",
            f"cursor must be `next` of the previous page, got {cursor}",
            key="cursor",
            value=cursor,
            remedy="omit it to start at the newest study",
        )
    return int(number)
