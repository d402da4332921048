"""What a person sees: plain lines without a terminal, a live table on one, results in which no name is ever markup."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.analysis.comparison import ComparisonDocument
from services.cli.progress import duration, progress_line, progress_table, result_tables, time_text, watching
from services.execution.driver import ArmProgress, Progress

HOSTILE = "[bold red]x[/nothing]\x1b[2J"
ARMS = (
    ArmProgress("dense", done=3, running=1, failed=0, best=0.8125, share=0.5),
    ArmProgress("blockout", done=2, running=0, failed=7, best=0.9375, share=0.25),
    ArmProgress("thin", done=0, running=0, failed=0, best=None, share=0.0),
)
PROGRESS = Progress(ARMS, seconds=65.0, seconds_left=3700.0)


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, legacy_windows=False)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def rendered(renderable: object) -> str:
    plain = console(terminal=False)
    plain.print(renderable)
    return written(plain)


def arm(name: str, mean: float) -> dict[str, object]:
    accuracy = {"mean": mean, "std": 0.01, "ci95": [mean - 0.02, mean + 0.02], "per_seed": {"0": mean, "1": mean}}
    return {
        "role": "learned" if name == "blockout" else "ablation",
        "seeds_cover": "retraining",
        "trials": 4,
        "failed": 0,
        "pruned": 0,
        "missing_seeds": [],
        "cost": {"search": {"sample_passes": 1000}, "retrain": {"sample_passes": 500}, "overhead_seconds": 0.5},
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy,
        "exported_seed": 0,
        "parameters": 4321,
        "macs": 1234,
        "macs_per_seed": {},
        "latency_ms": None,
        "architecture": None,
        "settings": {},
    }


def document(*names: str) -> ComparisonDocument:
    return ComparisonDocument.model_validate(
        {
            "schema_version": 2,
            "study": "example",
            "budget": {"unit": "sample_passes", "per_arm": 1500, "tolerance": 0.02},
            "arms": {name: arm(name, 0.9 - number / 10) for number, name in enumerate(names)},
            "pairs": [],
            "ranking_seeds": [0, 1],
            "ranking": list(names),
            "reason": None,
        }
    )


def test_lines_say_where_a_study_stands() -> None:
    assert progress_line(PROGRESS) == (
        "25% of the budget, 5 trials done, 1 running, 7 failed, best validation accuracy 93.8% (blockout), "
        "1 min 05 s elapsed, about 1 h 01 min left"
    )


def test_nothing_is_best_before_anything_is_done() -> None:
    line = progress_line(Progress(ARMS[2:], seconds=0.0, seconds_left=None))
    assert "best" not in line
    assert line.endswith("starting Ray ...")


def test_time_left_is_shown_once_there_is_an_estimate() -> None:
    assert time_text(Progress(ARMS, seconds=12.0, seconds_left=None)) == "12 s elapsed"
    assert time_text(PROGRESS) == "1 min 05 s elapsed, about 1 h 01 min left"


def test_without_a_terminal_lines_come_now_and_then() -> None:
    pipe = console(terminal=False)
    with watching(pipe, name="example") as observe:
        for _ in range(50):
            observe(PROGRESS)
    assert written(pipe) == f"example: {progress_line(PROGRESS)}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_writes_nothing(terminal: bool) -> None:
    on = console(terminal=terminal)
    with watching(on, name="example", quiet=True) as observe:
        observe(PROGRESS)
    assert written(on) == ""


def test_on_a_terminal_the_table_lives_and_goes() -> None:
    screen = console(terminal=True)
    with watching(screen, name="example") as observe:
        observe(PROGRESS)
    assert "study example" in written(screen)
    assert written(screen).rstrip().endswith("\x1b[2K")  # its last lines are erased


def test_the_table_has_a_row_for_every_arm() -> None:
    lines = rendered(progress_table("example", PROGRESS)).splitlines()
    assert "study example" in lines[0]
    cells = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:6]] for line in lines if "│" in line
    }
    assert cells["dense"] == ["3", "1", "", "81.2%"]
    assert cells["blockout"] == ["2", "", "7", "93.8%"]
    assert cells["thin"] == ["0", "", "", ""]
    assert "1 min 05 s elapsed, about 1 h 01 min left" in lines[-1]


def test_results_are_two_tables_the_verdict_and_the_model_to_ship() -> None:
    text = rendered(result_tables(document("blockout", "dense"), folder=Path("runs/example")))
    assert "study example" in text
    assert "differences in test accuracy, paired by seed" in text
    assert text.index("blockout") < text.index("dense")
    for part in ("90.0", "80.0", "4,321"):
        assert part in text
    words = " ".join(text.split())
    assert "by mean test accuracy: blockout 90.00%, dense 80.00%" in words
    assert words.index("ot shown") < words.index("by mean test accuracy") < words.index("Ship blockout")
    assert "model runs/example/models/blockout" in words
    assert "test accuracy 90.00%" in words[words.index("Ship blockout") :]


@pytest.mark.parametrize("name", [HOSTILE, "[link=http://example.org]a[/link]", ":warning:", "[/]"])
def test_names_are_never_markup(name: str) -> None:
    hostile = Progress((ArmProgress(name, 1, 0, 1, 0.5, 1.0),), seconds=1.0, seconds_left=None)
    plain = name.replace("\x1b", "\ufffd")
    assert plain in rendered(progress_table(name, hostile))
    assert plain in rendered(result_tables(document(name, "dense")))
    pipe = console(terminal=False)
    with watching(pipe, name=name) as observe:
        observe(hostile)
    assert written(pipe).startswith(f"{plain}: ")
    assert "\x1b" not in written(pipe)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (90061.0, "25 h 01 min")],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_events_are_progress_in_plain_json_types_a_few_seconds_apart() -> None:
    events: list[dict[str, Any]] = []
    silent = console(terminal=True)
    with watching(silent, name="mine", event=events.append) as observe:
        observe(PROGRESS)
        observe(PROGRESS)
    (event,) = json.loads(json.dumps(events))
    assert (event["event"], event["study"], event["seconds"], event["seconds_left"]) == (
        "progress",
        "mine",
        65.0,
        3700.0,
    )
    assert event["share"] == pytest.approx(0.25)
    assert event["arms"][1] == {"name": "blockout", "done": 2, "running": 0, "failed": 7, "best": 0.9375, "share": 0.25}
    assert written(silent) == ""
