"""Terminals and pipes as they come: without UTF-8, with a reader that has gone, and interrupted before it has begun."""

import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from services import entry_point
from services.cli.console import print_line, print_table, table
from tests.services.program import COMMAND, of
from tests.services.topology.studies import TINY

UNREAD, INTERRUPTED = 141, 130
Program = Callable[..., tuple[int, str]]
# As if Ctrl-C were pressed while the command line is imported.
INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "services.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from services.entry_point import main
main()
"""


@pytest.fixture
def as_found() -> Iterator[None]:
    """Leaves the process as the console script has found it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    thresholds, hook = gc.get_threshold(), sys.excepthook
    yield
    gc.set_threshold(*thresholds)
    sys.excepthook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def ascii_terminal(home: Path, as_found: None, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The console script in this process, with streams that know ASCII alone; returns its code and output."""

    def run(*words: object) -> tuple[int, str]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["nas-blockout", *map(str, words)])
        with monkeypatch.context() as patch:
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            try:
                entry_point.main()
                code: Any = 0
            except SystemExit as ended:
                code = ended.code or 0
        for stream in streams:
            stream.flush()
        return code, "".join(stream.buffer.getvalue().decode("ascii") for stream in streams)  # type: ignore[attr-defined]

    return run


def photos(folder: Path) -> Path:
    for name in ("caf\u00e9", "\u732b"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (12, 10), (number, 20, 50)).save(folder / name / f"{number}.png")
    return folder


def test_a_terminal_without_utf_8_shows_question_marks_and_plain_lines(ascii_terminal: Program, home: Path) -> None:
    code, output = ascii_terminal("data", "check", "imagefolder", "--folder", photos(home / "photos"))
    assert code == 0, output
    assert "caf?" in output
    code, output = ascii_terminal("run", "\u732b.yaml")
    assert (code, "error" in output) == (3, True), output


@pytest.mark.parametrize("words", [("doctor",), ("validate", "study.yaml")], ids=" ".join)
def test_paths_and_questions_in_any_script_end_no_command(
    ascii_terminal: Program, home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(home / "z\u00fcrich"))
    monkeypatch.chdir(home)
    study = {**TINY, "question": "\u5927\u304d\u3044 \u2265 5?"}
    (home / "study.yaml").write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    code, output = ascii_terminal(*words)
    assert code == 0, output
    assert "?" in output


def unread() -> int:
    """A descriptor to which nobody listens any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_without_a_reader_a_command_ends_in_silence(home: Path) -> None:
    writing = unread()
    command, environment = [*COMMAND, "list", "--json"], {**os.environ, **of(home)}
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (UNREAD, b"")


def test_without_a_reader_a_table_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(unread(), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            print_table(table(["name"], [["a row"]]))
        assert ended.value.code == UNREAD
        print_line("what follows goes nowhere")


def test_a_command_goes_on_where_only_nobody_reads_its_progress(home: Path) -> None:
    writing = unread()
    command = [*COMMAND, "token", "create", "--owner", "ann"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, env={**os.environ, **of(home)}, check=False)
    os.close(writing)
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"nab_")


def test_ctrl_c_before_anything_has_begun_is_one_line() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        INTERRUPTED,
        "",
        "interrupted; run the same command again\n",
    )
