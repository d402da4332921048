"""The command line: results on standard output, progress and errors on standard error, an exit code for every end."""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from services.cli import data, models, service, show, studies, submit
from services.cli.console import (
    FAILED,
    INTERRUPTED,
    NOT_FOUND,
    SOME_FAILED,
    TERMINATED,
    UNREACHABLE,
    UNVERIFIED,
    USAGE,
    JsonOption,
    SetOption,
    errors,
    fail,
    installation,
    log,
    logger,
    print_json,
    print_line,
    print_table,
    table,
)

app = typer.Typer(
    name="nas-blockout",
    help="Compare learned structure with hyperparameter search, under one budget, and export the winner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyArgument = Annotated[str, typer.Argument(help="A bundled study by name, or the path of a YAML file.")]
StoredArgument = Annotated[str, typer.Argument(help="Name of a study in the store.")]


@app.command()
def run(
    study: Annotated[str | None, typer.Argument(help="A bundled study by name, or the path of a YAML file.")] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once, instead of the study's number.")] = None,
    assignments: SetOption = None,
) -> None:
    """Run a study, or what is left of it; print its result if it has finished.

    A finished study is extended by a larger budget, more seeds or further arms: what stands is not done again.
    """
    if study is None:
        _list_bundled()
        raise typer.Exit(USAGE)
    settings = installation()
    resolved, source = _resolved(study, workers=workers, assignments=assignments)

    from services.cli.progress import result_tables, watching
    from services.cluster import own_cluster
    from services.execution.driver import run as run_study
    from services.files.disk_full import explain_disk_full
    from services.finalize.finalize import finish

    if own_cluster() is not None and settings.home == Path.cwd():
        log("warning: NAS_BLOCKOUT_HOME is not set: what this job leaves goes when Ray removes the job's folder")
    resume = "run the same command again, or resume the study in the service"
    with explain_disk_full(settings.folder(resolved.name), resume=resume):
        with watching(errors(), name=resolved.name, quiet=quiet) as observe:
            ran, store, splits = run_study(resolved, settings, observe=observe, source=source)
        with store:
            finished = finish(ran, store, settings, splits=splits, log=logger(quiet=quiet))
    if as_json:
        print_json(finished.document.model_dump(mode="json"))
    else:
        print_table(result_tables(finished.document))
        folder = settings.folder(resolved.name)
        print_line(f"report: {folder / 'report' / 'index.html'}\nmodels: {folder / 'models'}")
    if finished.failed:
        log(f"{finished.failed} trials failed; `nas-blockout show {resolved.name} --failed` says why")
        raise typer.Exit(SOME_FAILED)


@app.command()
def validate(study: StudyArgument, as_json: JsonOption = False, assignments: SetOption = None) -> None:
    """Check a study and print it with every setting resolved; nothing is written."""
    import yaml

    from nas_blockout.data import load
    from services.study_config.validation import check_against_data

    settings = installation()
    resolved, source = _resolved(study, assignments=assignments)
    check_against_data(resolved, load(resolved.data, root=settings.data), source=source)
    document = resolved.to_json()
    if as_json:
        print_json(document)
    else:
        print_line(yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True).rstrip())
        log(f"{source}: valid, configuration {resolved.hash}")


@app.command("list")
def list_studies(
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most studies to list.")] = 50,
) -> None:
    """List the studies in the store, the newest first, and those that are bundled."""
    with _store() as store:
        lines = store.studies(limit=limit)
    if as_json:
        print_json({"studies": [show.study_json(line) for line in lines], "bundled": sorted(_bundled())})
        return
    columns = ("study", "state", "created", "trials", "failed", "passes")
    rows = [
        (
            line.name,
            "interrupted" if line.interrupted else line.state,
            f"{line.created_at:%Y-%m-%d %H:%M}",
            line.trials.get("complete", 0),
            line.trials.get("failed", 0),
            f"{line.sample_passes:,}",
        )
        for line in lines
    ]
    print_table(table(columns, rows)) if rows else print_line("the store holds no study yet")
    _list_bundled()


@app.command()
def export(
    study: StoredArgument,
    arm: Annotated[str | None, typer.Argument(help="One arm; all of them if it is left out.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images expected at a time, to run fastest for; one as well as many if left out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export the winner of an arm again: .pt2, ONNX, safetensors, card and verification."""
    from services.files.disk_full import explain_disk_full
    from services.finalize.finalize import export_again

    log(f"exporting and verifying {arm or 'the winner of every arm'}")
    settings = installation()
    with explain_disk_full(settings.folder(study), resume="run the same command again"):
        folders = export_again(settings, study, arm, batch=batch)
    if as_json:
        print_json({"folders": [str(folder) for folder in folders]})
    for folder in () if as_json else folders:
        print_line(folder)


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Folders of exported models.")], as_json: JsonOption = False
) -> None:
    """Verify exported models: hashes, then every form reloaded in a fresh process and compared."""
    for folder in folders:
        if not folder.is_dir():
            fail(NOT_FOUND, f"there is no folder {folder}")
    from nas_blockout.export import verify_all

    log("verifying; each model is loaded in a process of its own")
    found = list(zip(folders, verify_all(folders), strict=True))
    if as_json:
        print_json({str(folder): {"ok": each.ok, "findings": list(each.findings)} for folder, each in found})
    for folder, each in () if as_json else found:
        print_line(f"{folder}: {'verified' if each.ok else 'NOT verified'}")
        for finding in each.findings:
            print_line(f"  {finding}")
    if not all(each.ok for _, each in found):
        raise typer.Exit(UNVERIFIED)


@app.command()
def sync(study: StoredArgument, as_json: JsonOption = False) -> None:
    """Write to MLflow what the store has and MLflow does not."""
    from services.finalize.finalize import sync_again

    log(f"writing {study} to MLflow")
    done = sync_again(installation(), study)
    if as_json:
        print_json({"experiment": done.experiment, "written": done.written, "present": done.present})
    else:
        print_line(f"{done.experiment}: {done.written} runs written, {done.present} were there")


@app.command()
def doctor(
    as_json: JsonOption = False,
    api: Annotated[
        str | None, typer.Option("--api", metavar="URL", help="Ask the service at this address as well.")
    ] = None,
) -> None:
    """Check versions, folders, store, MLflow, Ray, data and clocks, and say how to mend what is wrong."""
    from services.cli.doctor import SERVICES, examine

    findings = []
    for finding in examine(installation(), api=api):  # some take seconds: each is shown when it is there
        findings.append(finding)
        if not as_json:
            print_line(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.found}")
        if not as_json and not finding.ok:
            print_line(f"     {finding.remedy}")
    if as_json:
        print_json([finding.to_json() for finding in findings])
    bad = [finding.what for finding in findings if not finding.ok]
    if bad:
        raise typer.Exit(UNREACHABLE if set(bad) & SERVICES else FAILED)


app.command()(show.show)
app.command()(models.predict)
app.command()(submit.submit)
app.command()(studies.estimate)
app.command()(studies.replay)
app.command()(studies.compare)
app.command()(service.serve)
app.add_typer(data.app, name="data")
app.add_typer(service.tokens, name="token")
app.add_typer(service.tables, name="db")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every known error becomes one line and its exit code.

    Args:
        arguments: Words after the program's name; those of the process if left out.
    """
    ends: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        log(f"{word}; the same command goes on where it stopped")
        ends.append(INTERRUPTED if number == signal.SIGINT else TERMINATED)
        sys.exit(ends[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="nas-blockout")
    except SystemExit as ended:
        sys.exit(ends[0] if ends else ended.code)  # Ray puts a code of its own in the place of a signal's
    except ModuleNotFoundError:  # `entry_point` says which extra is not installed
        raise
    except Exception as error:  # noqa: BLE001  # the last resort: known errors get their code, others one line and 1
        code = exit_code(error)
        text = " ".join(str(error).split())
        log(f"error: {text}" if code is not None else f"error: {type(error).__name__}: {text}")
        sys.exit(FAILED if code is None else code)


def exit_code(error: Exception) -> int | None:
    """Return the exit code of an error, or None of one that nobody foresaw."""
    from nas_blockout.data import DataCorrupt, DataMissing, DataUnsuitable
    from nas_blockout.export import VerificationError
    from services.cluster import ClusterError
    from services.files.disk_full import DiskFull
    from services.files.remote import ArtifactError
    from services.mlflow_sync import TrackingError
    from services.settings import SettingsError
    from services.store import NotFound, StoreError, StoreUnreachable, StudyConflict
    from services.study_config.schema import StudyError, StudyNotFound

    codes: Mapping[int, tuple[type[Exception], ...]] = {
        USAGE: (StudyError, StudyConflict, SettingsError, DataUnsuitable),
        NOT_FOUND: (StudyNotFound, NotFound, DataMissing),
        UNREACHABLE: (ArtifactError, ClusterError, StoreUnreachable, TrackingError),
        UNVERIFIED: (VerificationError,),
        FAILED: (StoreError, DataCorrupt, DiskFull),
    }
    return next((code for code, kinds in codes.items() if isinstance(error, kinds)), None)


def _resolved(study: str, *, workers: int | None = None, assignments: Sequence[str] | None = None) -> Any:
    from services.study_config.overrides import read_resolved

    resolved, source = read_resolved(study, assignments or ())
    if workers is not None:
        config = resolved.config
        config = config.model_copy(
            update={"workers": config.workers.model_copy(update={"max_concurrent_trials": workers})}
        )
        resolved = replace(resolved, config=config)
    return resolved, source


def _store() -> Any:
    from services.store import Store

    return Store.open(installation().store_url)


def _bundled() -> Mapping[str, Path]:
    from services.study_config.schema import bundled

    return bundled()


def _list_bundled() -> None:
    from services.study_config.schema import read

    print_line("bundled studies:")
    for name, path in _bundled().items():
        print_line(f"  {name:<16} {read(path).question}")
    print_line("`nas-blockout run NAME` runs one, `nas-blockout run FILE.yaml` your own.")
