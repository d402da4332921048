"""Routes of results; files are located by what the store knows, never by a path in a request."""

import csv
import io
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from services.api.administration.access import own
from services.api.auth import Reader
from services.api.errors import RequestError, not_found
from services.api.requests.file_responses import Download, sha256_of
from services.api.schemas import ArchitectureView, FileView, ModelView
from services.api.state import Service
from services.api.studies import Shared, error_responses
from services.files.remote import place_of, reading
from services.files.shared_place import shared_place
from services.files.study_dir import Folder
from services.report import script_hash
from services.store import ExportRow, NotFound, QueueRow
from services.store.checked_values import MAX_INTEGER
from services.trial_record import Trial

# A report holds texts that users wrote, on the address at which others are logged in: nothing in it may run but the
# script of this version's reports, known by its hash, and that in a sandbox, where it is nobody's page: without the
# cookie, without requests. Downloads are the tables and figures that the page itself holds.
REPORT_POLICY = (
    f"default-src 'none'; script-src {script_hash()}; style-src 'unsafe-inline'; img-src data:; "
    "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"
)
_KINDS = {
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
}
MAX_TRIALS = 1000  # in one answer
_BINARY = "application/octet-stream"

router = APIRouter(prefix="/v1/studies/{name}", tags=["results"])


def _described(kind: str, what: str) -> dict[int | str, dict[str, object]]:
    return {200: {"content": {kind: {}}, "description": what}, **error_responses(404)}


@router.get(
    "/report",
    summary="Get the report",
    response_class=Response,
    responses=_described("text/html", "An HTML file."),
)
def report(shared: Shared, caller: Reader, name: str) -> Response:
    """The report as a single HTML file without external resources; its script sorts and filters tables."""
    row = own(shared, caller, name)
    path, held = located(shared, row, Folder(shared.settings.folder(row.study)).report, "report")
    return Download(path, media_type="text/html", held=held, headers={"Content-Security-Policy": REPORT_POLICY})


@router.get(
    "/comparison",
    summary="Get the comparison",
    response_class=Response,
    responses=_described("application/json", "`comparison.json`."),
)
def comparison(shared: Shared, caller: Reader, name: str) -> Response:
    """The comparison of the arms, the content of `comparison.json`."""
    row = own(shared, caller, name)
    path, held = located(shared, row, Folder(shared.settings.folder(row.study)).comparison, "comparison")
    return Download(path, media_type="application/json", held=held)


@router.get(
    "/trials",
    summary="Get the trials",
    response_class=Response,
    responses=_described("text/csv", "One row per trial; with more trials, `Link` has the address of the next page."),
)
def trials(
    request: Request,
    shared: Shared,
    caller: Reader,
    name: str,
    limit: Annotated[int, Query(ge=1, le=MAX_TRIALS, description="Trials in the page.")] = MAX_TRIALS,
    after: Annotated[
        int, Query(ge=-1, le=MAX_INTEGER, description="Only trials after this one: the last `trial` of a page.")
    ] = -1,
) -> Response:
    """Trials so far as CSV, in the order in which they were proposed, also while the study is running.

    A page has the columns of its own trials.
    """
    from services.finalize.trial_table import row_of

    # One more than the page, which tells whether there is another.
    found = _trials(shared, own(shared, caller, name), after=after, limit=limit + 1)
    rows = [shared.paths.without(row_of(row)) for row in found[:limit]]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["trial"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _escaped(value) for key, value in row.items()} for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    if len(found) > limit:
        headers["Link"] = f'<{request.url.path}?limit={limit}&after={found[limit - 1].id}>; rel="next"'
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


@router.get("/architectures", summary="Get the architectures", responses=error_responses(404))
def architectures(shared: Shared, caller: Reader, name: str) -> list[ArchitectureView]:
    """The architecture of every retrained model, by arm and seed."""
    return [
        ArchitectureView(
            arm=row.arm,
            trial=row.id,
            seed=row.seed,
            hash=row.result.get("architecture_hash"),
            architecture=row.result["architecture"],
        )
        for row in _trials(shared, own(shared, caller, name), phase="retrain", state="complete")
        if row.result and row.result.get("architecture")
    ]


@router.get("/models", summary="List the exported models", responses=error_responses(404))
def models(shared: Shared, caller: Reader, name: str) -> list[ModelView]:
    """The exported model of each arm, with the SHA-256 of each file."""
    row = own(shared, caller, name)
    return [
        ModelView(
            arm=export.arm,
            verified=export.verified,
            created_at=export.created_at,
            files=[
                FileView(
                    name=file, sha256=digest, url=f"/v1/studies/{row.study}/models/{quote(export.arm)}/{quote(file)}"
                )
                for file, digest in sorted(export.hashes.items())
            ],
        )
        for export in newest_exports(shared, row)
    ]


@router.get(
    "/models/{arm}/{file}",
    summary="Download a file of an exported model",
    response_class=Response,
    responses={
        **_described(_BINARY, "The file; `ETag` is its SHA-256."),
        206: {"content": {_BINARY: {}}, "description": "The bytes of `Range`."},
        **error_responses(409, 416),
    },
)
def model_file(shared: Shared, caller: Reader, name: str, arm: str, file: str) -> Response:
    """A file of the exported model of an arm, if its hash still is that of the export; in ranges, too."""
    row = own(shared, caller, name)
    model = next((export for export in newest_exports(shared, row) if export.arm == arm), None)
    # The name from the store, not the one from the request, becomes part of the path.
    known = next((known for known in model.hashes if known == file), None) if model else None
    if model is None or known is None:
        raise not_found("model file of that name")
    path = Folder(shared.settings.folder(row.study)).models / model.arm / known
    local, held = located(shared, row, path, "file of the model")
    if sha256_of(local) != model.hashes[known]:
        held.close()
        raise RequestError(
            409,
            "changed",
            "the file has changed since it was exported",
            key="file",
            value=known,
            remedy=f"`nas-blockout export {row.study} {model.arm}` writes it again",
        )
    headers = {"ETag": f'"{model.hashes[known]}"', "Content-Disposition": f'attachment; filename="{known}"'}
    return Download(local, media_type=_KINDS.get(path.suffix, _BINARY), held=held, headers=headers)


def newest_exports(shared: Service, row: QueueRow) -> list[ExportRow]:
    """Return the latest export of each arm of a study."""
    try:
        exports = shared.store.exports(row.study)
    except NotFound:
        return []
    # Later ones replace earlier ones under the same arm.
    return list({export.arm: export for export in sorted(exports, key=lambda export: export.created_at)}.values())


def _trials(shared: Service, row: QueueRow, **which: Any) -> tuple[Trial, ...]:
    """Return trials of a study, see `Store.trials`; none while no driver has begun it."""
    try:
        return shared.store.trials(row.study, **which)
    except NotFound:
        return ()


def located(shared: Service, row: QueueRow, path: Path, what: str) -> tuple[Path, ExitStack]:
    """Return a file of a study, from shared storage if that has it, else from this machine, and what to close after it.

    Raises:
        RequestError: The file does not exist yet.
        ArtifactError: The storage cannot be reached.
    """
    # Shared storage first: the study may have run elsewhere, and files here be those of an earlier attempt.
    root, elsewhere = shared.settings.folder(row.study), shared_place(shared.settings, shared.store, row.study)
    for place in dict.fromkeys((place_of(path, root, elsewhere), str(path.absolute()))):
        with ExitStack() as held:
            local = held.enter_context(reading(place))
            if local.is_file():
                return local, held.pop_all()
    raise RequestError(404, "not_finished", f"there is no {what} yet", remedy="wait until the study is complete")


def _escaped(value: object) -> object:
    """Return a value with a quote before anything that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
