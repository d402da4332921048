"""Commands about whole studies beside running them: what one will cost, its searches replayed, several compared."""

from typing import Annotated, Any

import typer

from services.cli.console import (
    FAILED,
    USAGE,
    JsonOption,
    SetOption,
    fail,
    installation,
    log,
    print_json,
    print_line,
    print_table,
    table,
)

MOST_WORKERS = 65_536
_SHARES = (0.25, 0.5, 0.75, 1.0)

StoredArgument = Annotated[str, typer.Argument(help="Name of a study in the store.")]


def replay(
    study: StoredArgument,
    searcher: Annotated[
        str | None, typer.Option("--searcher", help="Who proposes, instead of each arm's searcher.", metavar="NAME")
    ] = None,
    workers: Annotated[
        str, typer.Option("--workers", help="Simulated workers; several numbers with commas between.", metavar="N,...")
    ] = "1",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=100_000, help="Replays with each number of workers.")
    ] = 20,
    arm: Annotated[str | None, typer.Option("--arm", help="One arm; all that searched if left out.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the first replay; the study's if left out.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target", min=0, max=1, help="Validation accuracy to reach, 0 to 1; each arm's best if left out."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the recorded searches of a study again with simulated workers, in simulated time; nothing is trained."""
    from services.replay import Request, faithful
    from services.replay import replay as replayed

    request = Request(searcher, _numbers(workers), repeats, arm, seed, target)
    log(f"replaying {study}: {repeats} times with {workers} workers")
    found = replayed(installation(), study, request)
    if as_json:
        print_json(found.to_json())
    else:
        _draw_replay(found)
    if not faithful(found.reproduction):
        fail(
            FAILED, "not everything that really happened is proposed again; the versions in environment.json may differ"
        )


def estimate(
    study: Annotated[str, typer.Argument(help="A bundled study by name, or the path of a YAML file.")],
    quick: Annotated[bool, typer.Option("--quick", help="Measure for about 4 seconds instead of 20.")] = False,
    as_json: JsonOption = False,
    assignments: SetOption = None,
) -> None:
    """Say what a study will cost: trials, sample passes, seconds by arm and phase, wall-clock, disk.

    Something of every arm is trained in this process for a moment; nothing is written.
    """
    from services.estimate import estimate as estimated
    from services.study_config.overrides import read_resolved

    resolved, source = read_resolved(study, assignments or ())
    found = estimated(resolved, installation(), source=source, quick=quick, log=log)
    print_json(found.to_json()) if as_json else _draw_estimate(found)


def _draw_estimate(found: Any) -> None:
    from services.cli.progress import duration

    rows = [
        (arm, phase, cost.trials, f"{cost.sample_passes:,}", duration(cost.seconds))
        for arm, phases in found.phases.items()
        for phase, cost in phases.items()
    ]
    total = found.total
    rows.append(("all", "", total.trials, f"{total.sample_passes:,}", duration(total.seconds)))
    print_table(table(("arm", "phase", "trials", "passes", "training"), rows, title=f"study {found.study}, estimated"))
    slots = f"{found.workers} trial{'s' * (found.workers > 1)} at once"
    print_line(
        f"wall-clock: {duration(found.trials_seconds)} of trials with {slots}, {duration(found.wall_seconds)} in all"
    )
    print_line(f"disk: {found.disk_bytes / 1e6:,.1f} MB")
    print_line(f"measured in {duration(found.dry_run_seconds)}")
    for note in found.notes:
        print_line(f"note: {note}")


def compare(
    studies: Annotated[list[str], typer.Argument(help="Names of finished studies in the store, two or more.")],
    arm: Annotated[
        list[str] | None, typer.Option("--arm", help="Only arms of this name; repeatable.", metavar="ARM")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Put the arms of several studies of the same data into one table, and test them in pairs across studies."""
    from services.analysis.cross_study import compare as compared

    found = compared(installation(), studies, arms=arm or ())
    print_json(found.to_json()) if as_json else _draw_across(found)


def _draw_across(found: Any) -> None:
    from nas_blockout.statistics.significance import p_text
    from services.analysis.verdict import ARM_COLUMNS, arm_row

    print_table(table(ARM_COLUMNS, [arm_row(each.key, each.result) for each in found.arms]))
    rows = [
        (
            f"{pair.a} - {pair.b}",
            f"{100 * pair.difference:+.2f}",
            f"{100 * pair.ci95[0]:+.2f} .. {100 * pair.ci95[1]:+.2f}" if pair.ci95 else "-",
            *(pair.seeds, p_text(pair.p_holm), f"{pair.cost:.2f}", pair.verdict),
        )
        for pair in found.pairs
    ]
    columns = ("pair", "points", "95% interval", "seeds", "Holm", "passes a / b", "verdict")
    if rows:
        print_table(table(columns, rows, title="differences of test accuracy between studies, paired by seed"))
    else:
        print_line("no two arms of different studies share two seeds: nothing is tested")


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= MOST_WORKERS for part in parts):
        fail(USAGE, f"--workers takes whole numbers in 1..{MOST_WORKERS} with commas between, got {text!r}")
    return tuple(map(int, parts))


def _draw_replay(found: Any) -> None:
    for arm, again in found.reproduction.items():
        word = "reproduced" if again.difference is None else "NOT reproduced"
        tail = "" if again.difference is None else f"; the first that is not: {again.difference}"
        print_line(f"{word}: {arm}, {again.equal} of {again.trials} trials proposed again as they really were{tail}")
    rows = [
        (
            *(each.arm, found.searchers[each.arm], each.workers, each.trials),
            f"{each.exact} of {each.proposals}" if each.proposals else "drawn",
            _seconds(each.seconds[1]),
            f"{each.target:.2%}",
            f"{each.reached} of {each.repeats}",
            _spread(each.target_seconds, _seconds),
            _spread(each.target_passes, lambda passes: f"{passes:,.0f}"),
        )
        for each in found.outcomes
    ]
    columns = ("arm", "searcher", "workers", "trials", "exact", "takes", "target", "reached", "after", "after passes")
    print_table(table(columns, rows, title="simulated time: median (quartiles)"))
    curves = [
        (each.arm, each.workers, against, *(_accuracy(band, share) for share in _SHARES))
        for each in found.outcomes
        for against, band in (("budget", each.by_budget), ("time", each.by_time))
    ]
    shares = ("arm", "workers", "share of", *(f"{share:.0%}" for share in _SHARES))
    print_table(table(shares, curves, title="best validation % so far: median (quartiles)"))
    for arm in found.recorded:
        if found.searchers[arm] != found.recorded[arm] and found.recorded[arm] != "random":
            print_line(
                f"{arm}: its trials were proposed by {found.recorded[arm]}, which random draws from them profit by"
            )


def _seconds(value: float) -> str:
    from services.cli.progress import duration

    return f"{value:.1f} s" if value < 60 else duration(value)


def _spread(quartiles: Any, text: Any) -> str:
    low, median, high = ("never" if value is None else text(value) for value in quartiles)
    return f"{median} ({low} .. {high})"


def _accuracy(band: Any, share: float) -> str:
    place = round(share * (len(band.grid) - 1))
    values = [band.lower[place], band.median[place], band.upper[place]]
    low, median, high = ("-" if value != value else f"{100 * value:.2f}" for value in values)  # NaN
    return f"{median} ({low} .. {high})"
