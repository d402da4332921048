"""The command line: results go to standard output, progress and errors to standard error, with an exit code."""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from nas_blockout import __version__
from nas_blockout.serialization import count_of
from nas_blockout.settings_fields import Conflict
from services.cli import data, models, service, show, studies, submit, validate
from services.cli import lazy_modules as lazy
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
    StoredArgument,
    error_console,
    existing_folder,
    fail,
    installation,
    log,
    logger,
    print_json,
    print_line,
    print_table,
    table,
)
from services.cli.doctor import SERVICES, examine
from services.cli.help.completion import arms, bundled_studies
from services.cli.help.headings import CommandsByHeading
from services.cli.operating import account_commands, person_commands, plugin_commands, removal_commands
from services.cli.validate import read_study
from services.settings import Settings, SettingsError, masked

if TYPE_CHECKING:
    from services.finalize.finalize import Finished
    from services.study_config.overrides import Origin
    from services.study_config.resolved_study import Study

app = typer.Typer(
    name="nas-blockout",
    help="Compare learned network structure with hyperparameter search under one budget, and export the winner.",
    epilog="Start with: nas-blockout run quickstart",
    cls=CommandsByHeading,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # inherited by every command
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"nas-blockout {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Declare the options of the program itself; `_print_version` handles the only one there is."""


@app.command(epilog="Example: nas-blockout run quickstart --workers 4")
def run(
    study: Annotated[
        str | None,
        typer.Argument(help="Name of a bundled study, or path to a study file.", autocompletion=bundled_studies),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print machine-readable JSON: an event a line, the last with the comparison; with --quiet the "
            "comparison alone.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of concurrent trials; overrides the study file.")
    ] = None,
    assignments: SetOption = None,
    store_id: Annotated[
        str | None,
        typer.Option(metavar="UUID", help="Refuse to run unless the store has this identity; for jobs of the service."),
    ] = None,
    home_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Refuse to run unless the home folder or the shared storage has this identity; likewise."
        ),
    ] = None,
) -> None:
    """Run a study or resume it, then write its report, export its models and print the result.

    A larger budget, more seeds or additional arms extend a finished study; trials that have ended are not run again.
    Without a study, list the bundled ones.
    """
    if study is None:
        _list_bundled()
        raise typer.Exit(USAGE)
    settings = installation()
    if store_id is not None or home_id is not None:
        lazy.destination.require(settings, store=store_id, home=home_id, log=log)
    resolved, origin = _resolve(study, workers=workers, assignments=assignments)
    if lazy.cluster.surrounding_cluster() is not None and settings.home == Path.cwd():
        log("warning: NAS_BLOCKOUT_HOME is not set: Ray will delete this job's working directory and all results in it")
    if not quiet:
        for note in lazy.data.recognized(resolved.data):
            log(f"data: {note}")
    remedy = "run the same command again, or resume the study in the service"
    tell = logger(quiet=quiet)
    with lazy.disk_full.explain_disk_full(settings.folder(resolved.name), resume=remedy):
        event = partial(print_json, in_one_line=True) if as_json else None
        with lazy.progress.watching(error_console(), name=resolved.name, quiet=quiet, event=event) as observe:
            completed, store, splits = lazy.driver.run(
                resolved, settings, observe=observe, source=origin.source, lines=origin.lines, log=tell
            )
        with store:
            finished = lazy.finalize.finish(completed, store, settings, splits=splits, log=tell)
    _print_result(finished, settings, as_json=as_json, quiet=quiet)
    for arm, reason in finished.unexported.items():
        log(f"error: the model of {arm} was not exported: {reason}")
    if finished.failed:
        failed = count_of(finished.failed, "trial")
        log(f"{failed} failed; for the reasons run: nas-blockout show {resolved.name} --failed")
        raise typer.Exit(SOME_FAILED)
    if finished.unexported:
        raise typer.Exit(UNVERIFIED)


def _print_result(finished: "Finished", settings: Settings, *, as_json: bool, quiet: bool) -> None:
    document = finished.document
    folder = settings.folder(document.study)
    if as_json:
        comparison = document.model_dump(mode="json")
        result = {"event": "result", "study": document.study, "comparison": comparison}
        print_json(comparison if quiet else result, in_one_line=not quiet)
        return
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    print_table(lazy.progress.result_tables(document, folder=shown))
    print_line(f"report: {folder / 'report' / 'index.html'}\nmodels: {folder / 'models'}")
    _print_pages(settings, finished.pages)


def _print_pages(settings: Settings, pages: Mapping[str, str]) -> None:
    """Print where a study is compared in MLflow, and how its pages are opened where no server is known."""
    if not pages:
        return
    if not lazy.mlflow_pages.has_server(settings):
        print_line(f"MLflow: mlflow ui --backend-store-uri {masked(str(settings.tracking_uri))}")
    for name, address in lazy.mlflow_pages.full_addresses(settings, pages).items():
        print_line(f"MLflow, {name}: {address}")


@app.command("list", epilog="Example: nas-blockout list --limit 10")
def list_studies(
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of studies to list.")] = 50,
) -> None:
    """List the studies in the store, newest first, those that wait in the service, and the bundled studies.

    Of studies that are kept for a limited time, it says when they are deleted; of deleted ones, from when on they are
    purged, and cannot be restored any more.
    """
    settings = installation()
    with lazy.store.Store.open(settings.store_url) as store:
        lines, waiting, deleted = (
            store.studies(limit=limit),
            store.queue(["queued"], limit=limit),
            store.deleted_studies(),
        )
        days = settings.retention_days
        ends = {} if days is None else store.expiring([line.name for line in lines], days=days)
    if as_json:
        print_json(
            {
                "studies": [
                    {**show.study_json(line), "delete_at": ends[line.name].isoformat() if line.name in ends else None}
                    for line in lines
                ],
                "waiting": [show.waiting_json(row) for row in waiting],
                "deleted": removal_commands.deleted_json(deleted),
                "bundled": sorted(lazy.yaml_reader.bundled()),
            }
        )
        return
    counts = ("complete trials", "failed trials", "sample passes")
    columns = ("study", "state", "created", *counts, *(("deleted on (UTC)",) if ends else ()))
    rows = [
        (
            line.name,
            "interrupted" if line.interrupted else line.state,
            f"{line.created_at:%Y-%m-%d %H:%M}",
            line.trials.get("complete", 0),
            line.trials.get("failed", 0),
            f"{line.sample_passes:,}",
            *((f"{ends[line.name]:%Y-%m-%d %H:%M}" if line.name in ends else "",) if ends else ()),
        )
        for line in lines
    ]
    print_table(table(columns, rows)) if rows else print_line("The store contains no studies yet.")
    if waiting:
        in_line = sorted(waiting, key=lambda row: (row.position is None, row.position, row.id))
        print_table(table(show.WAITING_COLUMNS, map(show.waiting_cells, in_line), title="waiting in the service"))
    if deleted:
        removal_commands.print_deleted(deleted)
    _list_bundled()


@app.command(epilog="Example: nas-blockout export quickstart blockout --batch 256")
def export(
    study: StoredArgument,
    arm: Annotated[str | None, typer.Argument(help="Arm to export. [default: all arms]", autocompletion=arms)] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batch size to optimize the speed of the model for; any batch size still works. "
            "[default: one image as well as many]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes by name or label, such as 3,5,8: export only what serves them, without training, into a "
            "folder of its own. [default: all]"
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit one temperature on the validation images, by which logits are divided for probabilities.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export an arm's winner again, as .pt2, ONNX and safetensors, with a model card and verification."""
    log(f"exporting and verifying {arm or 'the winner of every arm'}")
    chosen = tuple(filter(None, map(str.strip, (classes or "").split(","))))
    if classes is not None and not chosen:
        fail(USAGE, f"--classes names no class: {classes!r}")
    if chosen and calibrate:
        fail(USAGE, "--calibrate is for whole models: omit it, or --classes")
    settings = installation()
    with lazy.disk_full.explain_disk_full(settings.folder(study), resume="run the same command again"):
        try:
            folders = lazy.finalize.export_again(settings, study, arm, batch=batch, classes=chosen, calibrate=calibrate)
        except ValueError as error:
            if not chosen:
                raise
            fail(USAGE, f"--classes: {error}")
    if as_json:
        print_json({"folders": [str(folder) for folder in folders]})
    for folder, told in () if as_json else folders.items():
        print_line(told or folder)


@app.command(epilog="Example: nas-blockout verify runs/quickstart/models/blockout")
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Folders of exported models.")], as_json: JsonOption = False
) -> None:
    """Verify exported models: compare file hashes, then reload every format in a fresh process and compare outputs."""
    for folder in folders:
        existing_folder(folder)
    log("verifying; each model is loaded in a separate process")
    verifications = dict(zip(folders, lazy.export.verify_all(folders), strict=True))
    if as_json:
        print_json(
            {
                str(folder): {"ok": verification.ok, "findings": list(verification.findings)}
                for folder, verification in verifications.items()
            }
        )
    for folder, verification in () if as_json else verifications.items():
        print_line(f"{folder}: {'verified' if verification.ok else 'NOT verified'}")
        for finding in verification.findings:
            print_line(f"  {finding}")
    if not all(verification.ok for verification in verifications.values()):
        raise typer.Exit(UNVERIFIED)


@app.command(epilog="Example: nas-blockout sync quickstart")
def sync(study: StoredArgument, as_json: JsonOption = False) -> None:
    """Sync missing runs and changed files of a study to MLflow; restore what was deleted there."""
    log(f"syncing {study} to MLflow")
    synced = lazy.mlflow_runs.sync_again(installation(), study)
    if as_json:
        counts = {"written": synced.written, "present": synced.present, "restored": synced.restored}
        print_json({"experiment": synced.experiment, **counts})
    else:
        restored = f", of which {synced.restored} had been deleted" if synced.restored else ""
        written = count_of(synced.written, "run")
        print_line(f"{synced.experiment}: {written} written, {synced.present} already present{restored}")
        _print_pages(installation(), synced.pages)
    for note in synced.notes:
        log(f"warning: {note}")


@app.command(epilog="Example: nas-blockout doctor --api http://127.0.0.1:8080")
def doctor(
    as_json: JsonOption = False,
    api: Annotated[str | None, typer.Option("--api", metavar="URL", help="Also check the service at this URL.")] = None,
) -> None:
    """Check the installation: versions, folders, store, MLflow, Ray, data and clocks; suggest fixes."""
    findings = []
    for finding in examine(installation(), api=api):  # a check can take seconds: print each result as soon as it is in
        findings.append(finding)
        if not as_json:
            print_line(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.found}")
        if not as_json and not finding.ok:
            print_line(f"     {finding.remedy}")
    if as_json:
        print_json([finding.to_json() for finding in findings])
    failed = {finding.what for finding in findings if not finding.ok}
    if failed:
        raise typer.Exit(UNREACHABLE if failed & SERVICES else FAILED)


app.command(epilog="Example: nas-blockout validate my-study.yaml --set retrain.seeds=[0,1,2]")(validate.validate)
app.command(epilog="Example: nas-blockout show quickstart --failed")(show.show)
app.command(epilog="Example: nas-blockout predict runs/quickstart/models/blockout digit.png --top 1")(models.predict)
app.command(epilog="Example: nas-blockout push runs/quickstart/models/blockout hf://ann/digits --license mit")(
    models.push
)
app.command(epilog="Example: nas-blockout inspect torchvision.models:resnet18 --image 3x64x64")(models.inspect)
app.command(epilog="Example: nas-blockout submit quickstart --address http://127.0.0.1:8265")(submit.submit)
app.command(epilog="Example: nas-blockout estimate glyphs --quick")(studies.estimate)
app.command(epilog="Example: nas-blockout replay glyphs --arm random --searcher tpe --workers 1,8,64")(studies.replay)
app.command(epilog="Example: nas-blockout compare first-study second-study --arm blockout")(studies.compare)
app.command(epilog="Example: nas-blockout bundle quickstart --models")(studies.bundle)
app.command(epilog="Example: nas-blockout serve api --host 127.0.0.1 --port 8080")(service.serve)
app.command(epilog="Example: nas-blockout delete my-study")(removal_commands.delete)
app.command(epilog="Example: nas-blockout restore my-study")(removal_commands.restore)
app.command(epilog="Example: nas-blockout purge --list")(removal_commands.purge)
app.command(epilog="Example: nas-blockout audit --action delete --limit 20")(account_commands.audit)
app.command(epilog="Example: nas-blockout plugins method dropout")(plugin_commands.plugins)
app.add_typer(account_commands.teams, name="team")
app.add_typer(person_commands.people, name="person")
app.add_typer(data.app, name="data")
app.add_typer(service.tokens, name="token")
app.add_typer(service.tables, name="db")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; turn every known error into one line and its exit code.

    Args:
        arguments: Words after the program's name; those of the process by default.
    """
    signaled: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        log(f"{word}; run the same command again to resume")
        signaled.append(INTERRUPTED if number == signal.SIGINT else TERMINATED)
        sys.exit(signaled[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="nas-blockout")
    except SystemExit as ended:
        sys.exit(signaled[0] if signaled else ended.code)  # Ray replaces the exit code of a signal with its own
    except ModuleNotFoundError:  # `entry_point` says which extra is not installed
        raise
    except Exception as error:  # noqa: BLE001  # the last resort: no user sees a traceback
        if signaled:  # a library has made another error of the one that ends the command
            sys.exit(signaled[0])
        code = exit_code(error)
        kind = "" if code is not None else f"{type(error).__name__}: "
        for text in str(error).splitlines() if code == USAGE else [str(error)]:  # a study tells all its errors
            log(f"error: {kind}{' '.join(text.split())}")
        if isinstance(error, lazy.errors.StudyError) and error.unchecked is not None:
            log(f"note: {error.unchecked}")
        sys.exit(FAILED if code is None else code)


def exit_code(error: Exception) -> int | None:
    """Return the exit code of a known error, or None for any other."""
    store, data, study_errors = lazy.store, lazy.data, lazy.errors
    codes: Mapping[int, tuple[type[Exception], ...]] = {
        USAGE: (study_errors.StudyError, store.StudyConflict, SettingsError, data.DataUnsuitable, Conflict),
        NOT_FOUND: (study_errors.StudyNotFound, store.NotFound, data.DataMissing),
        UNREACHABLE: (
            lazy.remote.ArtifactError,
            lazy.cluster.ClusterError,
            store.StoreUnreachable,
            lazy.tracking.TrackingUnreachable,
        ),
        UNVERIFIED: (lazy.export.VerificationError,),
        FAILED: (
            lazy.bundle.BundleError,
            store.StoreError,
            data.DataCorrupt,
            lazy.disk_full.DiskFull,
            lazy.tracking.TrackingError,
        ),
    }
    return next((code for code, kinds in codes.items() if isinstance(error, kinds)), None)


def _resolve(
    study: str, *, workers: int | None = None, assignments: Sequence[str] | None = None
) -> tuple["Study", "Origin"]:
    """Return a study with every setting resolved, and the file that it came from."""
    resolved, origin = read_study(study, assignments or ())
    if workers is not None:
        config = resolved.config
        config = config.model_copy(
            update={"workers": config.workers.model_copy(update={"max_concurrent_trials": workers})}
        )
        resolved = replace(resolved, config=config)
    return resolved, origin


def _list_bundled() -> None:
    print_line("bundled studies:")
    for name, path in lazy.yaml_reader.bundled().items():
        # Read and not checked, which would import torch: the tests check those that are bundled.
        print_line(f"  {name:<20} {lazy.yaml_reader.read_document(path).get('question', '')}")
    print_line("Run one with `nas-blockout run NAME`, or your own with `nas-blockout run FILE.yaml`.")
