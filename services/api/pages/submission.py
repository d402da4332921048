"""The form for a new study: begin with an example, check and estimate, submit. Nothing is queued twice by mistake."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from nas_blockout.data import DataError, dimensions
from services.api import studies
from services.api.administration.access import earlier_studies, sees_command_line
from services.api.errors import RequestError
from services.api.pages import editor
from services.api.pages.pace import Pace, pace_of
from services.api.requests import request_body
from services.api.requests.submitted_study import checked_with_lines
from services.api.web import Form, Visit, Visited, frame, rendered
from services.budget.planned_cost import PlannedCost, planned_cost
from services.renamed_keys import study_hash
from services.store import QueueRow, QueueSummary, StoreError
from services.study_config.errors import StudyError
from services.study_config.overrides import assigned
from services.study_config.resolved_study import Study
from services.study_config.searching.warm_starts import recalling
from services.study_config.yaml_reader import bundled, read_document

_MOST_COMPARED = 100  # finished studies, the newest ones, that a new one is compared with
_MOST_NAME = 63

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Written:
    """What somebody has written into the form.

    Args:
        text: The study as YAML.
        name: The name it is to have, or empty for that in the text.
        bundled: Name of a bundled study that is submitted as it is, or empty.
        key: By which a form that is sent twice is recognized.
        again: Whether to run a study again that has been run already.
    """

    text: str = ""
    name: str = ""
    bundled: str = ""
    key: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What is said of a study before it is submitted.

    Args:
        study: The study.
        cost: What it costs at most.
        pace: How long earlier studies took, or None.
        earlier: The same study, run before; None if there is none.
        free_name: A name under which it can be run again.
    """

    study: Study
    cost: PlannedCost
    pace: Pace | None
    earlier: QueueSummary | None
    free_name: str

    @property
    def training_seconds(self) -> float | None:
        """Seconds of training of all arms, at most; None if they are not known."""
        return self.cost.training_seconds({} if self.pace is None else self.pace.seconds_per_pass)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds from the first trial to the last where there is room for all trials at once; None if not known."""
        seconds = self.training_seconds
        return None if seconds is None else seconds / self.cost.trials_at_once

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours, at most; None if they are not known."""
        seconds = self.training_seconds
        return None if seconds is None else seconds * self.cost.gpus / 3600


@router.get("/new")
def new_page(visited: Visited, example: str = "") -> Response:
    """The form, with an example to begin with."""
    text = editor.example_text(example) if example else ""
    if text is None:
        raise RequestError(404, "not_found", f"there is no example {example[:80]!r}", remedy="choose one of the list")
    return _form_page(visited, Written(text=text), example=example)


@router.post("/new")
def check(request: Request, visited: Visited, fields: Form) -> Response:
    """Check a study and say what it costs; nothing is queued."""
    written = _written(fields)
    quick = "hx-request" in request.headers
    try:
        outcome = _checked(visited, _resolved(visited, written)[1])
    except (RequestError, StudyError, StoreError) as error:
        found = visited.shared.paths.error(error)
        # To have found errors is what a check is for; htmx leaves a page as it is at a status of an error.
        return _form_page(visited, written, error=found, status=200 if quick else found.status, announce=quick)
    return _form_page(visited, written, checked=outcome, announce=quick)


@router.post("/studies")
def submit(visited: Visited, fields: Form) -> Response:
    """Submit a study, unless it has been run already and nobody has said that it is to be run again."""
    written = _written(fields)
    try:
        document, study = _resolved(visited, written)
        earlier = _earlier(visited, study)
        if earlier is not None and earlier.ended and not (written.again and _can_run_again(earlier, study)):
            return _form_page(visited, written, checked=_checked(visited, study), status=409)
        text = None if written.bundled else written.text
        row = studies.submit(visited.shared, visited.caller, document, written.key or None, text=text)
    except (RequestError, StudyError, StoreError) as error:
        found = visited.shared.paths.error(error)
        return _form_page(visited, written, error=found, status=found.status)
    return RedirectResponse(f"/studies/{row.study}", 303)


def _written(fields: Mapping[str, str]) -> Written:
    name, text, chosen = (fields.get(key, "").strip("\n" if key == "yaml" else None) for key in _TEXTS)
    return Written(text, name, chosen, fields.get("key", "")[:100], fields.get("again") == "1")


_TEXTS = ("name", "yaml", "bundled")


def _resolved(visited: Visit, written: Written) -> tuple[dict[str, Any], Study]:
    """Return the study that is written in the form: as plain values, and resolved.

    Raises:
        RequestError: There is none, or the caller may not submit any.
        StudyError: It violates rules.
    """
    if not visited.caller.writes:
        raise RequestError(403, "read_only", "this token is read-only", remedy="use a token with --scope write")
    document = _document(written)
    if written.name:
        document = assigned(document, [f"name={json.dumps(written.name)}"])
    request_body.require_within_limits(document)
    text = None if written.bundled else written.text
    with recalling(earlier_studies(visited.shared, visited.caller)):
        return document, checked_with_lines(document, visited.shared.settings, text)


def _document(written: Written) -> dict[str, Any]:
    if written.bundled:
        known = bundled()
        if written.bundled not in known:
            message = f"there is no bundled study {written.bundled[:80]!r}"
            raise RequestError(422, "invalid_study", message, key="bundled")
        return read_document(known[written.bundled])
    if not written.text.strip():
        raise RequestError(422, "invalid_study", "choose a bundled study, or enter one as YAML", key="yaml")
    return request_body.document(written.text.encode(), "application/yaml")


def _checked(visited: Visit, study: Study) -> Checked:
    try:
        images = dimensions(study.data).train_images
    except DataError:
        images = None
    pace = pace_of(visited.shared, visited.caller, study)
    earlier = _earlier(visited, study)
    return Checked(study, planned_cost(study, images), pace, earlier, _free_name(visited, study.name))


def _earlier(visited: Visit, study: Study) -> QueueSummary | None:
    """Return the same study among those that the caller may use: of that name, or complete under another."""
    known = _of_name(visited, study.name)
    if known is not None and study.hash == known.config_hash:
        return known
    document = study.to_json()
    for row in _complete(visited):
        # Their documents need not be read: the hash tells whether anything but the name differs.
        if row.config_hash == study_hash({**document, "name": row.study}):
            return row
    return None


def _can_run_again(earlier: QueueSummary, study: Study) -> bool:
    """Whether a study can be queued that has been run: under another name, or if the service can go on with it."""
    return earlier.study != study.name or (not earlier.submitted and earlier.state != "complete")


def _of_name(visited: Visit, name: str) -> QueueRow | None:
    shared, caller = visited.shared, visited.caller
    row = shared.store.queued_study(name)
    if row is not None:
        return row if row.owner == caller.owner else None
    return shared.store.command_line_study(name) if sees_command_line(shared, caller) else None


def _complete(visited: Visit) -> list[QueueSummary]:
    shared, caller = visited.shared, visited.caller
    rows = list(shared.store.queue(("complete",), owner=caller.owner, limit=_MOST_COMPARED))
    if sees_command_line(shared, caller):
        others = shared.store.command_line_studies(limit=_MOST_COMPARED)
        rows += [row for row in others if row.state == "complete"]
    return rows


def _free_name(visited: Visit, name: str) -> str:
    """Return a name of the form `name-2` that none of the caller's studies has."""
    stem, _, number = name.rpartition("-")
    stem, first = (stem, int(number) + 1) if stem and number.isdecimal() and len(number) < 4 else (name, 2)
    for count in range(first, first + _MOST_COMPARED):
        found = f"{stem[: _MOST_NAME - 5]}-{count}"
        if _of_name(visited, found) is None:
            return found
    return ""


def _form_page(
    visited: Visit,
    written: Written,
    *,
    example: str = "",
    error: RequestError | None = None,
    checked: Checked | None = None,
    status: int = 200,
    announce: bool = False,
) -> Response:
    problem = None if error is None else error.problem
    if written.bundled and not written.text:  # whoever sends the form again sends what it shows
        written = replace(written, text=editor.example_text(written.bundled) or "", bundled="")
    key = written.key if checked is not None and checked.earlier is None else ""
    return rendered(
        "new",
        status,
        here="new",
        **frame(visited),
        form=replace(written, key=key or secrets.token_urlsafe(16)),  # pressing a button twice submits one study
        example=example,
        examples=editor.examples(visited.shared.settings),
        lines=editor.lines(written.text, problem),
        problem=problem,
        checked=checked,
        announcement=_said(problem, checked) if announce else "",
    )


def _said(problem: Any, checked: Checked | None) -> str:
    """Return what a screen reader says after a check."""
    if problem is not None:
        count = max(1, len(problem.errors))
        return f"{count} error{'s' * (count > 1)}: {problem.message}"
    return "The study has been run already." if checked and checked.earlier else "The study is valid."
