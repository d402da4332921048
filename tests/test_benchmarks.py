"""Benchmarks are run by hand: here it is only checked that a renamed name does not leave one of them behind."""

import csv
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What is imported from `benchmarks` within is as unknown afterward as it was before."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{BENCHMARKS}/"):
            del sys.modules[name]


def imported(path: Path) -> ModuleType:
    """A benchmark, in this process, which has imported by now most of what it needs; another takes seconds for that."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("forgotten")
def test_every_benchmark_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # as where one of them is run
    paths = sorted(BENCHMARKS.glob("*.py"))
    assert len(paths) > 10
    for path in paths:
        imported(path)


@pytest.mark.usefixtures("forgotten")
def test_rivals_are_compared_on_equal_terms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a method both sides give the same images right; with one, their masks differ and nothing else."""
    small = ["--samples", "80", "--channels", "4", "6", "--hidden", "8", "7", "--epochs", "2", "--seeds", "2"]
    names = ["none", "dropout", "dropconnect", "spatial_dropout", "dropblock", "dropcluster"]
    rows = tmp_path / "rows.csv"
    with torch.random.fork_rng(devices=[]):
        imported(BENCHMARKS / "rivals.py").main([*small, "--rows", str(rows), "--only", *names])
    with rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["rival"] for row in found] == [name for _ in range(2) for name in names for _ in range(2)]
    control = [row for row in found if row["rival"] == "none"]
    assert [row["accuracy"] for row in control[::2]] == [row["accuracy"] for row in control[1::2]]
    printed = capsys.readouterr().out
    assert "| none | no method, plain PyTorch (torch" in printed
    assert "| +0.00 (+0.00 .. +0.00) |" in printed


def test_the_device_check_runs_without_a_device(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/device_check.py", "--device", "cpu", "--quick", "--parts", "1"]
    done = subprocess.run(
        [*command, "--seconds", "60", "--out", str(tmp_path / "check.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "**1 machine**" in done.stdout
    assert "| 1 | machine | complete |" in done.stdout
