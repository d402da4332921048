"""Routes of what a study leaves behind; a file is found by what the store knows, never by a path of a request."""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import Response

from services.api.auth import Reader
from services.api.errors import Refused, not_found
from services.api.schemas import ArchitectureView, FileView, ModelView
from services.api.state import Service
from services.api.studies import Shared, own, refusals
from services.files.remote import place_of, reading
from services.files.study_dir import Folder
from services.store import ExportRow, NotFound, QueueRow
from services.trial_record import Trial

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"
_KINDS = {
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".yaml": "text/plain; charset=utf-8",
}
_BINARY = "application/octet-stream"

router = APIRouter(prefix="/v1/studies/{name}", tags=["results"])


def _described(kind: str, what: str) -> dict[int | str, dict[str, object]]:
    return {200: {"content": {kind: {}}, "description": what}, **refusals(404)}


@router.get(
    "/report", summary="The report", response_class=Response, responses=_described("text/html", "One HTML file.")
)
def report(shared: Shared, caller: Reader, name: str) -> Response:
    """The report as one HTML file that needs no network and no script."""
    row = own(shared, caller, name)
    content = _content(shared, row, Folder(shared.settings.folder(row.study)).report, "report")
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


@router.get(
    "/comparison",
    summary="The comparison",
    response_class=Response,
    responses=_described("application/json", "`comparison.json`."),
)
def comparison(shared: Shared, caller: Reader, name: str) -> Response:
    """The comparison of the arms, as `comparison.json` has it."""
    row = own(shared, caller, name)
    content = _content(shared, row, Folder(shared.settings.folder(row.study)).comparison, "comparison")
    return Response(content, media_type="application/json")


@router.get(
    "/trials", summary="All trials", response_class=Response, responses=_described("text/csv", "One row a trial.")
)
def trials(shared: Shared, caller: Reader, name: str) -> Response:
    """All trials so far as CSV, while the study runs too."""
    from services.finalize.trial_table import row_of

    rows = [row_of(row) for row in _trials(shared, own(shared, caller, name))]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["trial"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


@router.get("/architectures", summary="The architectures", responses=refusals(404))
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
        for row in _trials(shared, own(shared, caller, name))
        if row.phase == "retrain" and row.state == "complete" and row.result and row.result.get("architecture")
    ]


@router.get("/models", summary="The exported models", responses=refusals(404))
def models(shared: Shared, caller: Reader, name: str) -> list[ModelView]:
    """The exported model of every arm, with the hashes of its files."""
    row = own(shared, caller, name)
    return [
        ModelView(
            arm=each.arm,
            verified=each.verified,
            created_at=each.created_at,
            files=[
                FileView(
                    name=file, sha256=digest, url=f"/v1/studies/{row.study}/models/{quote(each.arm)}/{quote(file)}"
                )
                for file, digest in sorted(each.hashes.items())
            ],
        )
        for each in newest_exports(shared, row)
    ]


@router.get(
    "/models/{arm}/{file}",
    summary="A file of an exported model",
    response_class=Response,
    responses=_described(_BINARY, "The file; `ETag` is its SHA-256."),
)
def model_file(shared: Shared, caller: Reader, name: str, arm: str, file: str) -> Response:
    """A file of the exported model of an arm, after its hash was found to be that of the export."""
    row = own(shared, caller, name)
    found = next((each for each in newest_exports(shared, row) if each.arm == arm), None)
    known = next((each for each in found.hashes if each == file), None) if found else None
    if found is None or known is None:
        raise not_found("such file of a model")
    path = Folder(shared.settings.folder(row.study)).models / found.arm / known
    content = _content(shared, row, path, "file of the model")
    if hashlib.sha256(content).hexdigest() != found.hashes[known]:
        raise Refused(
            409,
            "changed",
            "the file is not the one that was exported",
            key="file",
            value=known,
            remedy=f"`nas-blockout export {row.study} {found.arm}` writes it again",
        )
    headers = {"ETag": f'"{found.hashes[known]}"', "Content-Disposition": f'attachment; filename="{known}"'}
    return Response(content, media_type=_KINDS.get(path.suffix, _BINARY), headers=headers)


def newest_exports(shared: Service, row: QueueRow) -> list[ExportRow]:
    """Return the last export of every arm of a study."""
    try:
        exports = shared.store.exports(row.study)
    except NotFound:
        return []
    return list({each.arm: each for each in sorted(exports, key=lambda each: each.created_at)}.values())


def _trials(shared: Service, row: QueueRow) -> Iterator[Trial]:
    try:
        yield from shared.store.trials(row.study)
    except NotFound:
        return


def _content(shared: Service, row: QueueRow, path: Path, what: str) -> bytes:
    """Return what a file of a study holds: from shared storage where that is used and has it, else from this machine.

    Raises:
        Refused: There is no such file yet.
        ArtifactError: The storage cannot be reached.
    """
    root, elsewhere = shared.settings.folder(row.study), shared.settings.shared(row.study)
    for place in dict.fromkeys((place_of(path, root, elsewhere), str(path.absolute()))):
        with reading(place) as found:
            if found.is_file():
                return found.read_bytes()
    raise Refused(404, "not_finished", f"there is no {what} yet", remedy="wait until the study is complete")


def _harmless(value: object) -> object:
    """Return a value that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
