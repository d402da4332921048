"""Several processes that train one model: the numbers of one process, a common end, and no waiting for the dead."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nas_blockout.training import EpochRecord
from tests.nas_blockout.training.shared_trainings import CASES, doubled, finding, start_ranks, trained
from tests.once import once

FEW = ("few rows", "few rows blockdrop")
SECONDS = 240  # for processes that share a busy machine; none of these tests waits on purpose


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What processes wrote, once all have ended; none outlives the test."""
    try:
        return [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def run_ranks(size: int, folder: Path, cases: tuple[str, ...]) -> None:
    processes = start_ranks(size, folder, cases)
    texts = outputs(processes)
    assert [process.returncode for process in processes] == [0] * size, "\n".join(texts)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "trained-by-two", lambda folder: run_ranks(2, folder, tuple(CASES)))


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "trained-by-three", lambda folder: run_ranks(3, folder, FEW))


def found(folder: Path, case: str, rank: int) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(folder / f"{case}.{rank}", weights_only=True)
    return result


def records(finding: dict[str, Any]) -> list[EpochRecord]:
    return [EpochRecord(**record) for record in json.loads(finding["records"])]


def numbers(record: EpochRecord) -> dict[str, Any]:
    """A record without what depends on time."""
    values = {name: value for name, value in (record.to_json() | record.telemetry).items() if _is_number(name, value)}
    return {name: torch.tensor(value) for name, value in values.items()}


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, int | float | list) and name != "seconds" and "clustering_share" not in name


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Compare two findings up to the order of summation in float64."""
    for one, other in zip(records(first), records(second), strict=True):
        torch.testing.assert_close(numbers(one), numbers(other), rtol=1e-6, atol=1e-7)
    for part in ("model", "optimizer"):
        torch.testing.assert_close(
            first["state"]["checkpoint"][part], second["state"]["checkpoint"][part], rtol=1e-6, atol=1e-7
        )
    torch.testing.assert_close(first["outcome"], second["outcome"], rtol=1e-6, atol=1e-7)
    assert first["teacher_passes"] == second["teacher_passes"]
    assert torch.equal(first["state"]["checkpoint"]["generator"], second["state"]["checkpoint"]["generator"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_numbers_of_one_process(case: str, of_two: Path) -> None:
    with doubled():
        alone = finding(trained(CASES[case]))
    assert_equal(found(of_two, case, 0), alone)


@pytest.mark.parametrize("case", FEW)
def test_a_batch_may_have_fewer_images_than_there_are_ranks(case: str, of_three: Path) -> None:
    with doubled():
        alone = finding(trained(CASES[case]))
    assert_equal(found(of_three, case, 0), alone)


@pytest.mark.parametrize("case", CASES)
def test_ranks_end_with_the_same_parameters_and_only_the_first_with_a_result(case: str, of_two: Path) -> None:
    first, second = found(of_two, case, 0), found(of_two, case, 1)
    model = first["state"]["checkpoint"]["model"]
    assert all(torch.equal(value, second["state"]["checkpoint"]["model"][name]) for name, value in model.items())
    assert first["outcome"] is not None
    assert second["outcome"] is None


@pytest.mark.parametrize("epochs", [1, 2])
def test_ranks_go_on_with_what_one_process_began_and_it_with_what_they_began(epochs: int, tmp_path: Path) -> None:
    with doubled():
        straight = finding(trained(CASES["two stages"]))
        begun = trained(CASES["two stages"], epochs=epochs).snapshot()
        torch.save(begun.to_state(), tmp_path / "two stages.start")
        run_ranks(2, tmp_path, ("two stages",))
        by_ranks = found(tmp_path, "two stages", 0)
        assert_equal(by_ranks, straight)
