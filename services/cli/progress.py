"""Progress of a running study, and its result: a live table on a terminal, elsewhere a plain line every few seconds."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table

from nas_blockout.serialization import count_of
from services.analysis.comparison import ComparisonDocument
from services.analysis.verdict import (
    PAIR_COLUMNS,
    arm_table,
    note_rows,
    pair_rows,
    ship_heading,
    ship_rows,
    verdict_of,
)
from services.cli.console import safe_text
from services.execution.driver import Observe, Progress

PLAIN_SECONDS = 5.0


@contextmanager
def watching(
    console: Console, *, name: str, quiet: bool = False, event: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[Observe]:
    """Yield a callback that shows the progress of a study.

    Args:
        console: Where to write; a terminal gets a live table, anything else plain lines.
        name: Of the study.
        quiet: Whether to show nothing.
        event: Takes the progress instead of the console, as an event in plain JSON types.
    """
    if quiet:
        yield lambda progress: None
    elif event is not None:
        yield _seldom(lambda progress: event(progress_event(name, progress)))
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda progress: live.update(progress_table(name, progress))
    else:
        yield _seldom(
            lambda progress: console.print(
                safe_text(f"{name}: {progress_line(progress)}"), highlight=False, soft_wrap=True
            )
        )


def _seldom(write: Observe) -> Observe:
    """Return a callback that writes at most every few seconds, so that logs of long studies stay readable."""
    last = -math.inf

    def observe(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            write(progress)

    return observe


def progress_event(name: str, progress: Progress) -> dict[str, Any]:
    """Return the progress of a study in plain JSON types: shares in [0, 1], times in seconds."""
    seconds = {"seconds": round(progress.seconds, 1), "seconds_left": progress.seconds_left}
    arms = [asdict(arm) for arm in progress.arms]
    return {"event": "progress", "study": name, "share": progress.share, **seconds, "arms": arms}


def progress_line(progress: Progress) -> str:
    """Return the progress of a study in one line."""
    done, running, failed = (sum(getattr(arm, key) for arm in progress.arms) for key in ("done", "running", "failed"))
    best = max(((arm.best, arm.name) for arm in progress.arms if arm.best is not None), default=None)
    leader = f", best validation {progress.metric} {best[0]:.1%} ({best[1]})" if best else ""
    return (
        f"{progress.share:.0%} of the budget, {count_of(done, 'trial')} done, "
        f"{running} running, {failed} failed{leader}, "
        f"{time_text(progress)}"
    )


def progress_table(name: str, progress: Progress) -> Table:
    """Return the progress of a study as a table with one row per arm."""
    table = Table(
        title=safe_text(f"study {name}"),
        caption=time_text(progress),
        title_justify="left",
        caption_justify="left",
    )
    for column in ("arm", "done", "running", "failed", "best validation", "budget"):
        table.add_column(column, justify="left" if column in ("arm", "budget") else "right")
    for arm in progress.arms:
        table.add_row(
            safe_text(arm.name),
            str(arm.done),
            str(arm.running) if arm.running else "",
            safe_text(arm.failed, style="red") if arm.failed else "",
            f"{arm.best:.1%}" if arm.best is not None else "",
            ProgressBar(total=1.0, completed=arm.share, width=24),
        )
    return table


def time_text(progress: Progress) -> str:
    """Return the time that a study has taken, and an estimate of the time left once there is one.

    Nothing runs before Ray has started, which takes seconds; the driver estimates nothing until a trial has ended.
    """
    if not any(arm.running for arm in progress.arms) and progress.seconds_left is None:
        return "starting Ray ..."
    elapsed = f"{duration(progress.seconds)} elapsed"
    return elapsed if progress.seconds_left is None else f"{elapsed}, about {duration(progress.seconds_left)} left"


def result_tables(document: ComparisonDocument, *, folder: Path | None = None) -> Group:
    """Return the result of a study: the tables of arms and of pairs, the verdict, and last the model to ship.

    Args:
        document: The comparison.
        folder: Of the study, from which the model is then named.
    """
    arms = _table(f"study {document.study}", *arm_table(document))
    pairs = _table(f"differences in test {document.metric_words}, paired by seed", PAIR_COLUMNS, pair_rows(document))
    return Group(arms, pairs, verdict_and_model(document, folder=folder))


def verdict_and_model(document: ComparisonDocument, *, folder: Path | None = None) -> Group:
    """Return the verdict of a study, the notes on it, and the model to ship; see `result_tables`."""
    found = verdict_of(document)
    verdict = _section(f"{found.headline}.", [("-", number) for number in found.numbers])
    rows = [(label, str(folder / text) if folder and label == "model" else text) for label, text in ship_rows(document)]
    notes = [_section("Notes.", rows_of_notes)] if (rows_of_notes := note_rows(document)) else []
    return Group(verdict, *notes, _section(ship_heading(document), rows))


def _section(heading: str, rows: Sequence[tuple[str, str]]) -> Padding:
    """Return a heading that stands out and what belongs to it, each text in a column of its own."""
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(safe_text(label), safe_text(text))
    return Padding(Group(safe_text(heading, style="bold"), Padding(grid, (0, 0, 0, 2))), (1, 0, 0, 0))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=safe_text(title), title_justify="left")
    for column in columns:
        left = column in ("arm", "pair", "verdict")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(safe_text, row))
    return table


def duration(seconds: float) -> str:
    """Return a duration for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
