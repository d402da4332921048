"""Trainings on a device: those of a processor in other sums, of every method, resumed, in bfloat16, and diverged."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits
from nas_blockout.devices import UsageMeter, name_of
from nas_blockout.experiment import Experiment, Run, Snapshot
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import EpochRecord, TrainingSettings

pytestmark = pytest.mark.gpu
TRAINING = TrainingSettings(epochs=3, batch_size=50, learning_rate=0.005)
PLAIN = Experiment(DataSettings("digits"), ConvNetSettings((12, 12), (32,)), training=TRAINING)


def experiment_of(method: str, **training: Any) -> Experiment:
    backbone = ResNetSettings(depth=8, width=0.25) if METHODS[method].site == "paths" else PLAIN.backbone
    document = {"name": method, **({"clusters": 2, "masked": "all"} if method == "blockout" else {})}
    return replace(PLAIN, backbone=backbone, method=method_from_json(document), training=replace(TRAINING, **training))


def records_of(run: Run) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, checkpoint=None) for record in run]


def test_a_training_is_that_of_a_processor_in_other_sums(device: torch.device, splits: Splits) -> None:
    here, there = (list(Run(PLAIN, splits, device=where)) for where in (device, "cpu"))
    for one, other in zip(here, there, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.02)
        assert one.sample_passes == other.sample_passes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_every_method_learns_in_every_precision(
    method: str, precision: str, device: torch.device, splits: Splits
) -> None:
    run = Run(experiment_of(method, precision=precision, epochs=6), splits, device=device)
    records = records_of(run)
    assert run.failure is None
    assert run.outcome is not None
    losses = [record.validation_loss for record in records]
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    assert min(loss for loss in losses[1:] if loss is not None) < (losses[0] or 0.0)
    logits = run.outcome.model.cpu()(splits.validation.images[:4].float())
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_training_learns_what_a_plain_one_learns(method: str, card: torch.device, splits: Splits) -> None:
    plain, compiled = (
        records_of(Run(experiment_of(method, epochs=2, compile=choice), splits, device=card))
        for choice in (False, True)
    )
    assert compiled[0].train_loss == pytest.approx(plain[0].train_loss, rel=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_goes_on_from_its_checkpoint_with_the_same_numbers(
    method: str, device: torch.device, splits: Splits
) -> None:
    experiment = experiment_of(method)
    whole = Run(experiment, splits, device=device)
    first, file = next(whole), io.BytesIO()
    torch.save(whole.snapshot().to_state(), file)
    rest = records_of(whole)
    file.seek(0)
    snapshot = Snapshot.from_state(torch.load(file, weights_only=True, map_location="cpu"))
    again = records_of(Run(experiment, splits, device=device, start=snapshot))
    assert first.checkpoint is not None
    assert [record.epoch for record in again] == [1, 2]
    for one, other in zip(again, rest, strict=True):  # kernels of a card may sum in another order each time
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


def test_a_checkpoint_of_a_card_goes_on_on_a_processor(card: torch.device, splits: Splits) -> None:
    run, file = Run(PLAIN, splits, device=card), io.BytesIO()
    next(run)
    torch.save(run.snapshot().to_state(), file)
    file.seek(0)
    snapshot = Snapshot.from_state(torch.load(file, weights_only=True, map_location="cpu"))
    snapshot = replace(snapshot, checkpoint=replace(snapshot.checkpoint, generator=torch.Generator().get_state()))
    rest = records_of(Run(PLAIN, splits, device="cpu", start=snapshot))
    assert [record.epoch for record in rest] == [1, 2]
    assert (rest[-1].train_loss or math.inf) < (run.records[0].train_loss or 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_training_ends_with_its_reason_and_leaves_the_device_alive(
    method: str, device: torch.device, splits: Splits
) -> None:
    run = Run(experiment_of(method, learning_rate=1e12, optimizer="sgd"), splits, device=device)
    list(run)
    assert run.failure is not None
    assert "became" in run.failure
    assert float(torch.ones(3, device=device).sum()) == 3.0


@pytest.mark.parametrize("clusters", [1, 2])
def test_what_is_derived_on_the_device_is_proved_there(clusters: int, device: torch.device, splits: Splits) -> None:
    method = method_from_json({"name": "blockout", "clusters": clusters, "masked": "all"})
    experiment = replace(PLAIN, method=method, distillation=DistillationSettings(target_macs=0.6))
    run = Run(experiment, splits, device=device)
    list(run)
    assert run.outcome is not None
    assert run.outcome.derivation is not None
    assert run.outcome.derivation.equality is not None


def test_an_epoch_waits_for_the_card_only_where_it_must(card: torch.device, splits: Splits) -> None:
    run = Run(replace(PLAIN, training=replace(TRAINING, epochs=2)), splits, device=card)
    next(run)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        next(run)
    waits = sum(event.count for event in profile.key_averages() if event.key in {"aten::item", "aten::nonzero"})
    steps = -(-300 // TRAINING.batch_size)
    assert waits < steps, "no step reads a value of the device"


def test_memory_of_the_card_is_measured(card: torch.device, splits: Splits) -> None:
    meter = UsageMeter(card)
    run = Run(PLAIN, splits, device=card)
    list(run)
    usage = meter.read()
    meter.stop()
    assert usage.device == name_of(card) != "cuda"
    assert usage.device_bytes is not None
    assert run.outcome is not None
    assert usage.device_bytes > 4 * run.outcome.parameters
