"""Commands about whole studies: estimate what one will cost, replay its recorded searches, compare or bundle them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas_blockout.serialization import count_of
from services.cli import lazy_modules as lazy
from services.cli.console import (
    FAILED,
    NOT_FOUND,
    UNVERIFIED,
    USAGE,
    JsonOption,
    SetOption,
    StoredArgument,
    StudyArgument,
    fail,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)
from services.cli.help.completion import stored_studies
from services.cli.validate import read_study

if TYPE_CHECKING:
    from nas_blockout.statistics.search_curves import Band
    from services.analysis.cross_study import CrossStudyComparison
    from services.estimate import Estimate
    from services.replay import Replayed
    from services.replay.results import Quartiles

MAX_WORKERS = 65_536
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)


def estimate(
    study: StudyArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Measure for about 4 seconds instead of 20.")] = False,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Estimate the cost of a study: trials, sample passes, seconds per arm and phase, wall-clock time, disk space.

    Every arm is trained briefly in this process to measure its speed. Nothing is written.
    """
    resolved, origin = read_study(study, assignments or ())
    estimated = lazy.estimate.estimate(
        resolved, installation(), source=origin.source, lines=origin.lines, quick=quick, log=log
    )
    print_json(estimated.to_json()) if as_json else _print_estimate(estimated)


def _print_estimate(estimated: "Estimate") -> None:
    duration = lazy.progress.duration
    rows = [
        (arm, phase, cost.trials, f"{cost.sample_passes:,}", duration(cost.seconds))
        for arm, phases in estimated.phases.items()
        for phase, cost in phases.items()
    ]
    total = estimated.total
    rows.append(("all arms", "", total.trials, f"{total.sample_passes:,}", duration(total.seconds)))
    columns = ("arm", "phase", "trials", "sample passes", "training time")
    print_table(table(columns, rows, title=f"study {estimated.study}, estimated cost"))
    concurrent = f"{estimated.workers} concurrent trial{'s' * (estimated.workers > 1)}"
    print_line(
        f"wall-clock: {duration(estimated.trials_seconds)} for the trials, with {concurrent}; "
        f"{duration(estimated.wall_seconds)} in total"
    )
    if estimated.crowding > 1:
        print_line(f"beside one another, trials take {estimated.crowding:.2f} times as long as alone; that is included")
    print_line(f"disk: {estimated.disk_bytes / 1e6:,.1f} MB")
    print_line(f"time taken by this estimate: {duration(estimated.dry_run_seconds)}")
    for note in estimated.notes:
        print_line(f"note: {note}")


def compare(
    studies: Annotated[
        list[str],
        typer.Argument(help="Names of two or more finished studies in the store.", autocompletion=stored_studies),
    ],
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Compare only arms with this name; can be repeated.", metavar="ARM"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare arms across several studies of the same data, in one table and with pairwise tests."""
    comparison = lazy.cross_study.compare(installation(), studies, arms=arm or ())
    print_json(comparison.to_json()) if as_json else _print_comparison(comparison)


def _print_comparison(comparison: "CrossStudyComparison") -> None:
    arms = [lazy.verdict.arm_row(arm.key, arm.result) for arm in comparison.arms]
    print_table(table(lazy.verdict.ARM_COLUMNS, arms))
    rows = [
        (
            f"{pair.a} - {pair.b}",
            f"{100 * pair.difference:+.2f}",
            f"{100 * pair.ci95[0]:+.2f} .. {100 * pair.ci95[1]:+.2f}" if pair.ci95 else "-",
            *(pair.seeds, lazy.significance.p_text(pair.p_holm), f"{pair.cost:.2f}", pair.verdict),
        )
        for pair in comparison.pairs
    ]
    columns = ("pair", "points", "95% interval", "seeds", "Holm", "cost ratio", "verdict")
    if rows:
        print_table(table(columns, rows, title="differences in test accuracy between studies, paired by seed"))
    else:
        print_line("Nothing was tested: no two arms of different studies share at least two seeds.")


def replay(
    study: StoredArgument,
    searcher: Annotated[
        str | None,
        typer.Option("--searcher", help="Search algorithm to replay. [default: that of each arm]", metavar="NAME"),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers", help="Number of simulated workers; a comma-separated list replays each.", metavar="N,..."
        ),
    ] = "1",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=100_000, help="Number of replays per number of workers.")
    ] = 20,
    arm: Annotated[str | None, typer.Option("--arm", help="Arm to replay. [default: every arm that searched]")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the first replay. [default: that of the study]")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            min=0,
            max=1,
            help="Validation accuracy to reach, as a fraction. [default: the best of each arm]",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the recorded searches of a study with simulated workers in simulated time. Nothing is trained."""
    request = lazy.replay.Request(searcher, _worker_counts(workers), repeats, arm, seed, target)
    log(f"replaying {study}: {count_of(repeats, 'time')} with {workers} workers")
    replayed = lazy.replay.replay(installation(), study, request)
    if as_json:
        print_json(replayed.to_json())
    else:
        _print_replays(replayed)
    if not lazy.replay.faithful(replayed.reproduction):
        fail(FAILED, "not every recorded trial was reproduced; compare library versions with environment.json")


def bundle(
    study: Annotated[
        str | None, typer.Argument(help="Name of a finished study in the store.", autocompletion=stored_studies)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="File to write. [default: STUDY.tar.gz]")
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="Put the exported models into it as well.")] = False,
    checked: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Check a bundle instead of writing one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished study as one archive that others can rerun and check, or check such an archive.

    It holds the resolved study, the rows of all trials and epochs, comparison, report, environment and hashes. Paths in
    your home folder are made relative, and a file with a secret of this installation is refused. --check compares the
    hashes and computes the numbers of the comparison again from the rows; nothing is extracted or run.
    """
    if (study is None) == (checked is None):
        fail(USAGE, "name a study to bundle, or a bundle to check: nas-blockout bundle --check FILE")
    if checked is not None:
        if output is not None or models:
            fail(USAGE, "--check takes neither --output nor --models")
        _check_bundle(checked, as_json=as_json)
        return
    path = output or Path(f"{study}.tar.gz")
    if path.is_dir():
        fail(USAGE, f"--output names a folder, {path}: name a file, such as {path / f'{study}.tar.gz'}")
    with lazy.disk_full.explain_disk_full(path.absolute().parent, resume="run the same command again"):
        packed = lazy.bundle.pack(installation(), str(study), path, models=models, home=Path.home())
    if as_json:
        print_json({"path": str(packed.path), "files": packed.files, "relative_paths": dict(packed.paths)})
        return
    print_line(f"{packed.path}: {count_of(packed.files, 'file')}, {packed.path.stat().st_size:,} bytes")
    for name, number in packed.paths.items():
        log(f"{name}: {count_of(number, 'path')} in folders of yours made relative")


def _check_bundle(path: Path, *, as_json: bool) -> None:
    if not path.is_file():
        fail(NOT_FOUND, f"there is no file {path}")
    found = lazy.bundle.check(path)
    if as_json:
        facts = {"study": found.study, "files": found.files, "numbers": found.numbers}
        print_json({**facts, "ok": not found.problems, "problems": list(found.problems)})
    else:
        word = "agrees" if not found.problems else "does NOT agree"
        print_line(
            f"{found.study}: {word}; {count_of(found.files, 'file')} compared with their hashes, "
            f"{count_of(found.numbers, 'number')} of the comparison computed again from the rows"
        )
        for problem in found.problems:
            print_line(f"  {problem}")
    if found.problems:
        raise typer.Exit(UNVERIFIED)


def _worker_counts(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= MAX_WORKERS for part in parts):
        fail(USAGE, f"--workers must be a comma-separated list of whole numbers in 1..{MAX_WORKERS}, got {text!r}")
    return tuple(map(int, parts))


def _print_replays(replayed: "Replayed") -> None:
    for arm, reproduction in replayed.reproduction.items():
        word = "reproduced" if reproduction.difference is None else "NOT reproduced"
        difference = "" if reproduction.difference is None else f"; first difference: {reproduction.difference}"
        count = f"{reproduction.equal} of {reproduction.trials} trials were proposed exactly as recorded"
        print_line(f"{word}: {arm}, {count}{difference}")
    rows = [
        (
            *(outcome.arm, replayed.searchers[outcome.arm], outcome.workers, outcome.trials),
            f"{outcome.exact} of {outcome.proposals}" if outcome.proposals else "drawn",
            _seconds(outcome.seconds[1]),
            f"{outcome.target:.2%}",
            f"{outcome.reached} of {outcome.repeats}",
            _spread(outcome.target_seconds, _seconds),
            _spread(outcome.target_passes, lambda passes: f"{passes:,.0f}"),
        )
        for outcome in replayed.outcomes
    ]
    columns = (
        *("arm", "searcher", "workers", "trials", "exact", "duration"),
        *("target", "reached", "time to target", "sample passes to target"),
    )
    print_table(table(columns, rows, title="simulated time, median (quartiles)"))
    curves = [
        (outcome.arm, outcome.workers, axis, *(_accuracy(band, fraction) for fraction in _FRACTIONS))
        for outcome in replayed.outcomes
        for axis, band in (("budget", outcome.by_budget), ("time", outcome.by_time))
    ]
    fractions = ("arm", "workers", "fraction of", *(f"{fraction:.0%}" for fraction in _FRACTIONS))
    print_table(table(fractions, curves, title="best validation accuracy so far in %, median (quartiles)"))
    for arm, recorded in replayed.recorded.items():
        # A random draw from trials that TPE chose is better than a random search would have been.
        if replayed.searchers[arm] != recorded and recorded != "random":
            print_line(f"{arm}: its trials were proposed by {recorded}; random draws from them benefit from that")


def _seconds(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:.1f} s" if value < 60 else lazy.progress.duration(value)


def _spread(quartiles: "Quartiles", text: Callable[[float], str]) -> str:
    low, median, high = ("never" if value is None else text(value) for value in quartiles)
    return f"{median} ({low} .. {high})"


def _accuracy(band: "Band", fraction: float) -> str:
    index = round(fraction * (len(band.grid) - 1))
    values = (float(band.lower[index]), float(band.median[index]), float(band.upper[index]))
    # NaN: so early, no trial had ended in enough replays.
    low, median, high = ("-" if math.isnan(value) else f"{100 * value:.2f}" for value in values)
    return f"{median} ({low} .. {high})"
