"""A page of `docs/tutorials` as what it asks its reader to do: files to write, commands to run, output to see."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TUTORIALS = ROOT / "docs" / "tutorials"
PROGRAM = f"#!/bin/sh\nexec {sys.executable} -c 'from services.entry_point import main; main()' \"$@\"\n"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_SPOKEN = (re.compile(r"(Yes|No|Not shown)\b"), re.compile(r"Ship \S"))
_MOST_WORDS = 3
_NUMBER = re.compile(r"[+-]?\d[\d,.]*")


@dataclass(frozen=True, slots=True)
class Step:
    """A file to write, or commands to run and the output that the page shows of them.

    Args:
        text: Of the file, or the commands.
        file: Its name; None for commands.
        shown: Output of the commands on the page; empty if it shows none.
        varies: Whether what they write depends on how a training ends, and so on the processor.
        condition: Where they are run; empty for everywhere.
    """

    text: str
    file: str | None = None
    shown: str = ""
    varies: bool = False
    condition: str = ""


def steps(page: Path) -> Iterator[Step]:
    """Yield what a page asks for, in its order."""
    blocks = [(found[1], found[2], found[3]) for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))]
    for position, (language, told, text) in enumerate(blocks):
        if language == "sh":
            following = blocks[position + 1] if position + 1 < len(blocks) else ("", "", "")
            shown = following[2] if following[0] == "text" else ""
            condition = re.search(r'if="([^"]+)"', told)
            yield Step(
                text, shown=shown, varies="varies" in following[1].split(), condition=condition[1] if condition else ""
            )
        elif title := _TITLE.search(told):
            yield Step(text, file=title[1])


def follow(step: Step, folder: Path, environment: Mapping[str, str]) -> str:
    """Do one step in a folder, and return what the commands wrote on either stream; empty for a file.

    Paths in the folder are returned relative to it, as the pages show them.

    Raises:
        AssertionError: A command failed.
    """
    if step.file is not None:
        (folder / step.file).write_text(step.text, encoding="utf-8")
        return ""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step.text],
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{step.text}\nended with {done.returncode}:\n{done.stdout}"
    return done.stdout.replace(f"{folder}/", "")


def environment_of(folder: Path) -> dict[str, str]:
    """Variables under which a reader's commands run: the program on the path, everything kept in the folder."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    (programs / "nas-blockout").write_text(PROGRAM)
    (programs / "nas-blockout").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "NAS_BLOCKOUT_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def form(line: str) -> str:
    """Return a line without what may differ between two machines: its numbers, and the widths of its columns."""
    return " ".join(_NUMBER.sub("#", re.sub(r"[│┃|]", " ", line)).split())


def missing(step: Step, written: str) -> list[str]:
    """Return the lines that the page shows of a step and that its commands did not write."""
    return absent_beginnings(step.shown, written) if step.varies else absent(step.shown, written)


def absent(shown: str, written: str) -> list[str]:
    """Return the lines of a shown output that were not written, apart from their numbers.

    A line that ends with ``...`` is the beginning of a written one; a line of dots stands for lines that are left out.
    """
    lines = {form(line) for line in written.splitlines()}
    lost = []
    for line in shown.splitlines():
        wanted = form(line)
        begins = wanted.removesuffix("...").rstrip()
        found = any(each.startswith(begins) for each in lines) if wanted.endswith("...") else wanted in lines
        if not found and not set(wanted) <= set("┏━┳┓┡╇┩└─┴┘┬┼╈ "):
            lost.append(line)
    return lost


def absent_beginnings(shown: str, written: str) -> list[str]:
    """Return the lines of a shown output of which not even the beginning was written.

    Which arm is ahead, and so the words of a verdict, may be different on another processor. Rows and labelled lines
    are compared by the words before their first number; a verdict must be there if one is shown, whatever it says.
    """
    beginnings = {_beginning(line) for line in written.splitlines()}
    found = [line for line in shown.splitlines() if (start := _beginning(line)) and start not in beginnings]
    for kind in _SPOKEN:
        told = [line for line in shown.splitlines() if kind.match(line)]
        if told and not any(kind.match(line) for line in written.splitlines()):
            found.extend(told)
    return found


def _beginning(line: str) -> str:
    """Return the words before the first number of a line; empty for prose, which has more of them, and for paths."""
    before, number, _ = form(line).partition("#")
    return before.strip() if number and len(before.split()) <= _MOST_WORDS and "/" not in before else ""
