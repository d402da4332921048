"""Finding a command and typing it: headings, completion, near matches of names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from services.cli.help.headings import HEADINGS
from services.cli.main import app
from tests.services.program import Call

VARIABLE = "_NAS_BLOCKOUT_COMPLETE"


@pytest.fixture
def ran(home: Path) -> Path:
    """A home with the folder of a study that has ended, of one that has not, and of something else."""
    for name, arms in (("mine", {"dense": {}, "blockout": {}}), ("begun", None)):
        folder = home / "runs" / name
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text("name: x\n")
        if arms is not None:
            (folder / "comparison.json").write_text(json.dumps({"arms": arms}))
            (folder / "models" / "blockout").mkdir(parents=True)
    (home / "runs" / "mlartifacts").mkdir()
    return home


def proposed(call: Call, line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash proposes for the last word of a line."""
    monkeypatch.setenv(VARIABLE, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    return call().out.split()


def test_every_command_stands_under_one_heading_and_help_keeps_their_order(call: Call) -> None:
    names = [name for group in HEADINGS.values() for name in group]
    assert sorted(names) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    out = call("--help").out
    places = [out.index(f"\n{heading}:\n") for heading in HEADINGS]
    assert places == sorted(places)
    assert "..." not in out.partition("\nStudies:")[2]  # no sentence is cut
    for name in names:
        assert f"\n  {name.ljust(8)}  " in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nas-blockout val", ["validate"]),
        ("nas-blockout run quick", ["quickstart"]),
        ("nas-blockout validate quick", ["quickstart"]),
        ("nas-blockout show ", ["begun", "mine"]),
        ("nas-blockout export mi", ["mine"]),
        ("nas-blockout export mine ", ["blockout", "dense"]),
        ("nas-blockout export mine b", ["blockout"]),
        ("nas-blockout export begun ", []),
        ("nas-blockout show mla", []),
    ],
)
def test_a_shell_completes_commands_studies_and_arms(
    call: Call, ran: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    assert proposed(call, line, monkeypatch) == expected


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"arms": 3}', '{"arms": [7]}'])
def test_completion_says_nothing_of_a_damaged_file(
    call: Call, ran: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (ran / "runs" / "mine" / "comparison.json").write_text(content)
    assert proposed(call, "nas-blockout export mine ", monkeypatch) == []


def test_completion_creates_nothing_and_survives_a_home_that_is_not_there(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(home.rglob("*"))
    assert proposed(call, "nas-blockout show ", monkeypatch) == []
    assert sorted(home.rglob("*")) == before


def test_a_key_in_a_shell_waits_for_no_library() -> None:
    script = (
        "import sys; from services.cli.help.completion import bundled_studies; "
        "print(bundled_studies('quick'), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "['quickstart'] False\n"


@pytest.mark.parametrize("command", ["verify", "show", "predict"])
def test_a_model_that_is_not_there_is_told_with_the_nearest_one(call: Call, ran: Path, command: str) -> None:
    models = ran / "runs" / "mine" / "models"
    picture = [ran / "x.png"] if command == "predict" else []
    ended = call(command, models / "blokout", *picture)
    assert ended.code == 3
    assert ended.err == f"error: there is no folder {models / 'blokout'}; did you mean {models / 'blockout'}?\n"
    assert "name one that" in call(command, models / "zzz", *picture).err
