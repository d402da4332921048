"""Benchmarks are run by hand: here it is only checked that a renamed name does not leave one of them behind."""

import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib.util, sys
sys.path.insert(0, "benchmarks")
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("benchmark_" + path.replace("/", "_")[:-3], path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
"""


def test_every_benchmark_imports() -> None:
    paths = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.py"))
    command = [sys.executable, "-c", IMPORT_ALL, *paths]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (len(paths) > 10, done.returncode) == (True, 0), done.stderr


def test_rivals_are_compared_on_equal_terms(tmp_path: Path) -> None:
    """Without a method both sides give the same images right; with one, their masks differ and nothing else."""
    small = ["--samples", "80", "--channels", "4", "6", "--hidden", "8", "7", "--epochs", "2", "--seeds", "2"]
    names = ["none", "dropout", "dropconnect", "spatial_dropout", "dropblock", "dropcluster"]
    rows = tmp_path / "rows.csv"
    done = subprocess.run(
        [sys.executable, "benchmarks/rivals.py", *small, "--rows", str(rows), "--only", *names],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["rival"] for row in found] == [name for _ in range(2) for name in names for _ in range(2)]
    control = [row for row in found if row["rival"] == "none"]
    assert [row["accuracy"] for row in control[::2]] == [row["accuracy"] for row in control[1::2]]
    assert "| none | no method, plain PyTorch (torch" in done.stdout
    assert "| +0.00 (+0.00 .. +0.00) |" in done.stdout


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
