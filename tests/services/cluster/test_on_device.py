"""All that a trial computes with a network is computed on its device, which is emulated: tests/emulated_device.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nas_blockout.data import Loader
from services.cluster import trial_results
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker
from tests.emulated_device import DEVICE, Emulation, emulated

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")

BASE: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
    "seed": 3,
}
RESNET = {"name": "resnet", "depth": 8, "width": 0.25}
LEARNED = {"name": "blockout", "clusters": 2, "masked": "all"}
TEACHER = {"target_macs": 0.6, "soft_target_weight": 0.5, "trim_by": "probability", "thresholds": [0.3, 0.5]}
ONE_STAGE: Mapping[str, dict[str, Any]] = {
    "dropout": {"method": {"name": "dropout", "rate": 0.2}},
    "dropcluster": {"backbone": RESNET, "method": {"name": "dropcluster"}},
    "blockdrop": {"backbone": RESNET, "method": {"name": "blockdrop"}},
}
TWO_STAGES: Mapping[str, dict[str, Any]] = {
    "teacher": {"method": LEARNED, "distillation": TEACHER},
    "confusion": {"confusion": {"branches": 2}},
}
ALL = {**ONE_STAGE, **TWO_STAGES}
# Elements that products and convolutions give on the processor in the whole trial: memberships and shares of blocks;
# and the proofs that two networks are equal, of 64 images in two precisions. One pass of the smallest of these networks
# over the validation images gives more.
MOST, MOST_WITH_PROOFS = 10, 120_000


def ended(worker: Worker, folder: Path, changes: Mapping[str, Any], *, device: str, **asked: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    given = Task(
        trial=1,
        experiment={**BASE, **changes},
        evaluates_test=True,
        checkpoint=str(folder / "1.pt"),
        model=str(folder / "1.safetensors"),
        device=device,
        measures_latency=True,
        **asked,
    )
    worker.start(given)
    while not (report := Report.from_text(worker.step().to_text())).done:
        pass
    assert report.result is not None, report.failure
    return dict(report.result)


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> Any:
    with emulated(monkeypatch) as found:
        yield found


@pytest.mark.parametrize("name", ALL)
def test_a_trial_gives_the_same_results_on_its_device_and_computes_them_there(
    tmp_path: Path, emulation: Emulation, name: str
) -> None:
    result = ended(Worker(), tmp_path / "device", ALL[name], device=DEVICE)
    assert emulation.work["cpu"] <= (MOST_WITH_PROOFS if name in TWO_STAGES else MOST)
    assert emulation.work[DEVICE] > 250_000
    expected = ended(Worker(), tmp_path / "processor", ALL[name], device="cpu")
    volatile = {"overhead_seconds", "peak_memory_bytes", "latency_ms", "latency_device", "usage"}
    assert result.keys() - volatile == expected.keys() - volatile
    # A device runs all blocks of BlockDrop on all images, which sums in another order and counts batches nobody reads.
    in_order = name != "blockdrop"
    for key in result.keys() - volatile:
        rounded = not in_order and isinstance(expected[key], float)
        assert result[key] == (pytest.approx(expected[key], rel=1e-4) if rounded else expected[key]), key
    assert (result["latency_device"], expected["latency_device"]) == (DEVICE, "cpu")
    weights, others = (load_file(tmp_path / place / "1.safetensors") for place in ("device", "processor"))
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        if in_order:
            assert torch.equal(value, others[key]), key
        elif not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, others[key], rtol=1e-3, atol=1e-4)


def test_test_images_are_kept_where_those_of_training_are(
    tmp_path: Path, emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, evaluate = [], trial_results.evaluate

    def seen(model: Any, loader: Loader, **options: Any) -> Any:
        evaluated.append(loader.part.device.type)
        return evaluate(model, loader, **options)

    monkeypatch.setattr(trial_results, "evaluate", seen)
    ended(Worker(), tmp_path, ONE_STAGE["dropout"], device=DEVICE)
    assert evaluated == [DEVICE]


def test_corrupted_images_are_made_on_the_processor_and_seen_on_the_device(
    tmp_path: Path, emulation: Emulation
) -> None:
    worker, robustness = Worker(), {"images": 40, "severities": [2], "seed": 1}
    first = ended(worker, tmp_path / "1", ONE_STAGE["dropout"], device=DEVICE, robustness=robustness)
    made = emulation.work["cpu"]
    assert made > 0
    second = ended(worker, tmp_path / "2", ONE_STAGE["dropout"], device=DEVICE, robustness=robustness)
    assert emulation.work["cpu"] == made
    assert first["robustness"]["errors"] == second["robustness"]["errors"]


def test_a_pass_is_timed_from_and_to_moments_at_which_the_device_waits_for_nothing(
    tmp_path: Path, emulation: Emulation
) -> None:
    ended(Worker(), tmp_path, ONE_STAGE["dropout"], device=DEVICE)
    waited = emulation.waits
    assert waited == 2 * 15  # before and after each timed pass
    ended(Worker(), tmp_path / "cpu", ONE_STAGE["dropout"], device="cpu")
    assert emulation.waits == waited


def test_the_emulated_device_is_one(emulation: Emulation) -> None:
    with pytest.raises(RuntimeError, match="expected all tensors on one device, found lazy and cpu"):
        torch.ones(2, device=DEVICE) + torch.ones(2)
    assert torch.ones(2, device=DEVICE).device.type == DEVICE
    assert (torch.ones(2, 2, device=DEVICE) @ torch.ones(2, 2, device=DEVICE)).tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert emulation.work == {DEVICE: 4}
    assert emulation.copies == 4
