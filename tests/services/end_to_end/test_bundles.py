"""A bundle of a real study is whole, and its resolved study, run elsewhere, repeats its accuracies."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.program import RUNS_HERE, alone, of
from tests.services.tiny import TINY

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(40), *RUNS_HERE]


def accuracies(rows: Path) -> dict[tuple[str, str, str, str], str]:
    with rows.open(encoding="utf-8") as file:
        return {
            (row["arm"], row["phase"], row["number"], row["seed"]): row["validation_accuracy"] + row["test_accuracy"]
            for row in csv.DictReader(file)
        }


def test_a_bundle_agrees_with_itself_and_is_run_again_by_its_one_command(tmp_path: Path) -> None:
    study: dict[str, Any] = {**TINY, "arms": {**TINY["arms"], "tuned": {"space": ["training"]}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    variables = of(tmp_path / "home", HOME=str(tmp_path))
    done = alone("run", tmp_path / "tiny.yaml", **variables)
    assert done.code == 0, done.err[-3000:]
    made = alone("bundle", "tiny", "--output", tmp_path / "tiny.tar.gz", "--models", **variables)
    assert made.code == 0, made.err
    again = alone("bundle", "tiny", "--output", tmp_path / "again.tar.gz", "--models", **variables)
    assert again.code == 0, again.err
    assert (tmp_path / "tiny.tar.gz").read_bytes() == (tmp_path / "again.tar.gz").read_bytes()
    checked = alone("bundle", "--check", tmp_path / "tiny.tar.gz", "--json", **of(tmp_path / "nothing"))
    assert checked.code == 0, checked.out
    assert checked.json["ok"] is True
    assert checked.json["numbers"] > 30
    with tarfile.open(tmp_path / "tiny.tar.gz") as archive:
        archive.extractall(tmp_path / "received", filter="data")
    received = tmp_path / "received" / "tiny"
    for path in received.rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path
    # As its README says; the store is another one.
    rerun = alone("run", received / "study.yaml", **of(tmp_path / "elsewhere"))
    assert rerun.code == 0, rerun.err[-3000:]
    first, second = (
        accuracies(received / "trials.csv"),
        accuracies(tmp_path / "elsewhere" / "runs" / "tiny" / "trials.csv"),
    )
    assert first == second
    told, found = (
        json.loads(path.read_text())["arms"]
        for path in (received / "comparison.json", tmp_path / "elsewhere" / "runs" / "tiny" / "comparison.json")
    )
    assert {arm: told[arm]["test_accuracy"] for arm in told} == {arm: found[arm]["test_accuracy"] for arm in found}
