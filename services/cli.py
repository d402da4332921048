"""The command line: results on standard output, progress and errors on standard error, an exit code for every end."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from services.settings import Settings

DONE, FAILED, USAGE, NOT_FOUND, SOME_FAILED, UNREACHABLE, UNVERIFIED = range(7)
INTERRUPTED, TERMINATED = 130, 143

app = typer.Typer(
    name="nas-blockout",
    help="Compare learned structure with hyperparameter search, under one budget, and export the winner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)

StudyArgument = Annotated[str, typer.Argument(help="A bundled study by name, or the path of a YAML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def run(
    study: Annotated[str | None, typer.Argument(help="A bundled study by name, or the path of a YAML file.")] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once, instead of the study's number.")] = None,
) -> None:
    """Run a study, or what is left of it; print its result if it has finished."""
    from services.display import result_tables, watching
    from services.results import finish
    from services.study import run as run_study

    if study is None:
        _print_studies()
        raise typer.Exit(USAGE)
    settings = Settings.from_environment()
    resolved, source = _resolved(study, workers=workers)
    with watching(err, name=resolved.name, quiet=quiet) as observe:
        store, splits = run_study(resolved, settings, observe=observe, source=source)
        finished = finish(resolved, store, settings, splits=splits, say=_say(quiet))
    if as_json:
        _print_json(finished.document.model_dump(mode="json"))
    else:
        out.print(result_tables(finished.document))
        folder = settings.folder(resolved.name)
        out.print(
            f"report: {folder / 'report' / 'index.html'}\nmodels: {folder / 'models'}", highlight=False, soft_wrap=True
        )
    if finished.failed:
        err.print(
            f"{finished.failed} trials failed; `nas-blockout show {resolved.name} --failed` says why", soft_wrap=True
        )
        raise typer.Exit(SOME_FAILED)


@app.command()
def validate(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Check a study and print it with every setting resolved; nothing is written."""
    import yaml

    from nas_blockout.data import load
    from services.study_file import check_against_data

    settings = Settings.from_environment()
    resolved, source = _resolved(study)
    check_against_data(resolved, load(resolved.data, root=settings.data), source=source)
    document = resolved.to_json()
    if as_json:
        _print_json(document)
    else:
        out.print(yaml.safe_dump(document, sort_keys=False, width=120), highlight=False, soft_wrap=True, end="")
        err.print(f"{source}: valid, configuration {resolved.hash}", soft_wrap=True)


@app.command("list")
def list_studies(
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most studies to list.")] = 50,
) -> None:
    """List the studies in the store, the newest first, and those that are bundled."""
    rows = _store().studies(limit=limit)
    if as_json:
        _print_json({"studies": [study_json(row) for row in rows], "bundled": sorted(_bundled())})
        return
    table = Table("study", "state", "created", "trials", "failed", "passes")
    for row in rows:
        state = "interrupted" if row.interrupted else row.state
        done, failed = row.trials.get("complete", 0), row.trials.get("failed", 0)
        table.add_row(
            row.name, state, f"{row.created_at:%Y-%m-%d %H:%M}", str(done), str(failed), f"{row.sample_passes:,}"
        )
    out.print(table if rows else "the store holds no study yet")
    _print_studies()


@app.command()
def show(
    study: Annotated[str, typer.Argument(help="Name of a study in the store.")],
    as_json: JsonOption = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only trials that failed, with their reasons.")] = False,
) -> None:
    """Show a study: its state, its trials and what it has cost, by arm and phase."""
    from services.results import flat

    store = _store()
    row = store.study(study)
    trials = [trial for trial in store.trials(study) if not failed or trial.state == "failed"]
    if as_json:
        _print_json({**study_json(row), "trials": [flat(trial) for trial in trials]})
        return
    out.print(f"study {row.name}: {row.state}" + (f" ({row.error})" if row.error else ""), highlight=False)
    table = Table("trial", "arm", "phase", "seed", "state", "validation", "test", "passes", "seconds", "reason")
    for trial in trials:
        result = trial.result or {}
        table.add_row(
            str(trial.id), trial.arm, trial.phase, str(trial.seed), trial.state, _percent(trial.score),
            _percent(result.get("test_accuracy")), f"{trial.sample_passes:,}", f"{trial.seconds:.1f}", trial.reason or
            "",
        )  # fmt: skip
    out.print(table)
    costs = Table("arm", "phase", "trials", "failed", "passes", "seconds", title="cost", title_justify="left")
    for (arm, phase), cost in cost_by_phase(trials).items():
        costs.add_row(
            arm, phase, str(cost["trials"]), str(cost["failed"]), f"{cost['passes']:,}", f"{cost['seconds']:.1f}"
        )
    out.print(costs)


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="Name of a study in the store.")],
    arm: Annotated[str | None, typer.Argument(help="One arm; all of them if it is left out.")] = None,
) -> None:
    """Export the winner of an arm again: .pt2, ONNX, safetensors, card and verification."""
    from services.results import export_again

    for folder in export_again(Settings.from_environment(), study, arm):
        out.print(str(folder), highlight=False, soft_wrap=True)


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Folders of exported models.")], as_json: JsonOption = False
) -> None:
    """Verify exported models: hashes, then every form reloaded in a fresh process and compared."""
    from nas_blockout.export import verify_all

    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        _stop(NOT_FOUND, f"there is no folder {missing[0]}")
    found = verify_all(folders)
    if as_json:
        _print_json(
            {
                str(folder): {"ok": each.ok, "findings": list(each.findings)}
                for folder, each in zip(folders, found, strict=True)
            }
        )
    else:
        for folder, each in zip(folders, found, strict=True):
            out.print(f"{folder}: {'verified' if each.ok else 'NOT verified'}", highlight=False, soft_wrap=True)
            for finding in each.findings:
                out.print(f"  {finding}", highlight=False, soft_wrap=True)
    if not all(each.ok for each in found):
        raise typer.Exit(UNVERIFIED)


@app.command()
def sync(study: Annotated[str, typer.Argument(help="Name of a study in the store.")]) -> None:
    """Write to MLflow what the store has and MLflow does not."""
    from services.results import sync_again

    done = sync_again(Settings.from_environment(), study)
    out.print(f"{done.experiment}: {done.written} runs written, {done.present} were there", highlight=False)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check versions, folders, store, MLflow, Ray and data, and say how to mend what is wrong."""
    from services.doctor import examine

    findings = examine(Settings.from_environment())
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "BAD "
            out.print(f"{mark} {finding.what}: {finding.found}", highlight=False, soft_wrap=True)
            if not finding.ok:
                out.print(f"     {finding.remedy}", highlight=False, soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(UNREACHABLE)


def main() -> None:
    """Run the command line; every known error becomes one line and its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt:
        err.print("interrupted; the same command goes on where it stopped")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the last resort: known errors get their code, others one line and 1
        code = exit_code(error)
        err.print(
            f"error: {error}" if code != FAILED else f"error: {type(error).__name__}: {error}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        sys.exit(code)


def exit_code(error: Exception) -> int:
    """Return the exit code of an error."""
    from nas_blockout.data import DataError
    from nas_blockout.export import VerificationError
    from services.cluster import ClusterError
    from services.settings import SettingsError
    from services.store import NotFound, StoreError, StudyConflict
    from services.study_file import StudyError, StudyNotFound
    from services.tracking import TrackingError

    codes: Mapping[int, tuple[type[Exception], ...]] = {
        USAGE: (StudyError, StudyConflict, SettingsError),
        NOT_FOUND: (StudyNotFound, NotFound, DataError),
        UNREACHABLE: (ClusterError, StoreError, TrackingError),
        UNVERIFIED: (VerificationError,),
    }
    return next((code for code, kinds in codes.items() if isinstance(error, kinds)), FAILED)


def study_json(row: Any) -> dict[str, Any]:
    """Return a study of the store as plain JSON types."""
    return {
        "name": row.name,
        "state": row.state,
        "created_at": row.created_at.isoformat(),
        "finished_at": row.finished_at.isoformat() if row.finished_at else None,
        "interrupted": row.interrupted,
    }


def cost_by_phase(trials: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return trials, failures, sample passes and seconds by arm and phase."""
    costs: dict[tuple[str, str], dict[str, Any]] = {}
    for trial in trials:
        cost = costs.setdefault((trial.arm, trial.phase), {"trials": 0, "failed": 0, "passes": 0, "seconds": 0.0})
        cost["trials"] += 1
        cost["failed"] += trial.state == "failed"
        cost["passes"] += trial.sample_passes
        cost["seconds"] += trial.seconds
    return costs


def _resolved(study: str, *, workers: int | None = None) -> Any:
    from services.study_file import find, read, resolve

    path = find(study)
    config = read(path)
    if workers is not None:
        config = config.model_copy(update={"workers": config.workers.model_copy(update={"at_once": workers})})
    return resolve(config, source=str(path)), str(path)


def _store() -> Any:
    from services.store import Store

    return Store.open(Settings.from_environment().store_url)


def _bundled() -> Mapping[str, Path]:
    from services.study_file import bundled

    return bundled()


def _print_studies() -> None:
    from services.study_file import read

    out.print("bundled studies:", highlight=False)
    for name, path in _bundled().items():
        out.print(f"  {name:<16} {read(path).question}", highlight=False, soft_wrap=True)
    out.print(
        "`nas-blockout run NAME` runs one, `nas-blockout run FILE.yaml` your own.", highlight=False, soft_wrap=True
    )


def _say(quiet: bool) -> Any:
    return (lambda text: None) if quiet else lambda text: err.print(text, highlight=False, soft_wrap=True)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _stop(code: int, message: str) -> None:
    err.print(f"error: {message}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    err.print("terminated; the same command goes on where it stopped")
    sys.exit(TERMINATED)
