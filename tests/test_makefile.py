"""What the targets install, and that an interrupted installation is never taken for a finished one.

`make` is run for real; in the place of Python stands a program that notes what pip is asked for, and fails on demand.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/nas-blockout" && echo venv >> log ;;
    "-m pip") shift 2; echo "$@" >> log; [ ! -f no-network ] ;;
    *) echo "Python 3.11" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@dataclass(frozen=True, slots=True)
class Checkout:
    folder: Path

    def make(self, target: str) -> "subprocess.CompletedProcess[str]":
        command = ["make", target, f"PYTHON={self.folder / 'python'}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def installs(self, target: str) -> list[str]:
        """What a target had done: `venv` for a new environment, and the extra of each installation."""
        log = self.folder / "log"
        log.write_text("")
        done = self.make(target)
        assert done.returncode == 0, done.stderr
        return [line.split()[-1] for line in log.read_text().splitlines()]

    def fails(self, target: str) -> None:
        (self.folder / "no-network").touch()
        assert self.make(target).returncode != 0
        (self.folder / "no-network").unlink()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return Checkout(tmp_path)


STUDIES, TOOLS = "quickstart", "install"  # every other target that needs an environment depends on `install`


def test_quickstart_installs_what_studies_need_and_the_others_add_the_tools(checkout: Checkout) -> None:
    assert checkout.installs(STUDIES) == ["venv", ".[services]"]
    assert checkout.installs(STUDIES) == []
    assert checkout.installs(TOOLS) == [".[dev]"]
    assert checkout.installs(TOOLS) == []
    assert checkout.installs(STUDIES) == []


def test_one_installation_is_enough_for_all_targets(checkout: Checkout) -> None:
    assert checkout.installs(TOOLS) == ["venv", ".[dev]"]
    assert checkout.installs(STUDIES) == []


@pytest.mark.parametrize("target", [STUDIES, TOOLS])
def test_an_interrupted_installation_is_begun_again_from_nothing(checkout: Checkout, target: str) -> None:
    checkout.fails(target)
    (checkout.folder / ".venv" / "half-written").touch()
    assert checkout.installs(target)[0] == "venv"
    assert not (checkout.folder / ".venv" / "half-written").exists()


def test_tools_that_were_interrupted_leave_nothing_that_counts_as_finished(checkout: Checkout) -> None:
    checkout.installs(STUDIES)
    checkout.fails(TOOLS)
    assert checkout.installs(STUDIES) == ["venv", ".[services]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_version_is_installed_over_what_is_there(checkout: Checkout, name: str) -> None:
    checkout.installs(TOOLS)
    os.utime(checkout.folder / name, None)
    os.utime(checkout.folder / ".venv" / ".installed", (1, 1))
    os.utime(checkout.folder / ".venv" / ".installed-services", (1, 1))
    assert checkout.installs(STUDIES) == [".[services]"]
    assert checkout.installs(TOOLS) == [".[dev]"]


def test_an_environment_from_before_there_were_two_stages_is_kept(checkout: Checkout) -> None:
    checkout.installs(TOOLS)
    (checkout.folder / ".venv" / ".installed-services").unlink()
    assert checkout.installs(TOOLS) == []
    assert checkout.installs(STUDIES) == [".[services]"]
