"""A run that is left inside an epoch and goes on from there gives the numbers of one that was never left."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Placement, Splits, StreamedPart, load
from nas_blockout.experiment import Experiment, Run
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.dropblock import DropBlockSettings
from nas_blockout.methods.dropcluster import DropClusterSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import EpochRecord
from tests.nas_blockout.training.shared_trainings import CASES, PLAIN, Kept

IMAGES = 97
LONG = replace(PLAIN, training=replace(PLAIN.training, epochs=2))  # epochs of four batches
SMALL = replace(PLAIN, backbone=ResNetSettings(depth=8, width=0.25))
GATES = {"pretrain_fraction": 0.0, "policy_fraction": 0.0}
ROWS = {
    **{name: case for name, case in CASES.items() if "blockdrop" not in name and name != "few rows"},
    "blockdrop": replace(SMALL, method=BlockDropSettings(**GATES)),
    "blockdrop, phases": replace(
        SMALL,
        method=BlockDropSettings(pretrain_fraction=0.3, policy_fraction=0.3),
        training=replace(PLAIN.training, epochs=3),
    ),
    "blockdrop, gumbel": replace(SMALL, method=BlockDropSettings(**GATES, estimator="gumbel")),
    "darts, derived": replace(
        PLAIN,
        method=DartsSettings(branches=2, relaxation="gumbel"),
        distillation=DistillationSettings(target_macs=0.8, trim_by="probability"),
        training=replace(PLAIN.training, epochs=3),
    ),
    "dropblock, ramped": replace(LONG, method=DropBlockSettings(rate=0.3, block_size=3)),
    "dropcluster, learned anew in every epoch": replace(
        LONG, method=DropClusterSettings(ramp_epochs=0, update_every=1)
    ),
    "balanced, one-cycle": replace(LONG, training=replace(LONG.training, sampling="balanced", schedule="one-cycle")),
    "running statistics": replace(LONG, training=replace(LONG.training, evaluation_statistics="running")),
    "randaugment": replace(LONG, data=replace(LONG.data, augment="shift-randaugment-cutout")),
}


def numbers(records: Sequence[EpochRecord]) -> list[dict[str, Any]]:
    rows = [record.to_json() for record in records]
    for row in rows:
        row["seconds"] = 0.0
        row["telemetry"] = {key: value for key, value in row["telemetry"].items() if "share/" not in key}
    return rows


def assert_same(run: Run, other: Run) -> None:
    assert numbers(run.records) == numbers(other.records)
    assert run.outcome is not None
    assert other.outcome is not None
    expected = other.outcome.model.state_dict()
    for name, value in run.outcome.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def finished(experiment: Experiment, splits: Splits, **options: Any) -> Run:
    run = Run(experiment, splits, **options)
    for _ in run:
        pass
    return run


def test_every_method_is_among_the_rows() -> None:
    assert {method.settings for method in METHODS.values()} <= {type(row.method) for row in ROWS.values()}


@pytest.mark.parametrize("row", ROWS)
def test_a_run_goes_on_inside_an_epoch(row: str) -> None:
    experiment, kept = ROWS[row], Kept()
    splits = load(experiment.data)
    straight = finished(experiment, splits, saving=kept.saving)
    progress = [kept.at(number).checkpoint.progress for number in range(len(kept.files))]
    inside = [number for number, each in enumerate(progress) if each and each.images < IMAGES]
    for number in (inside[0], inside[-1]):
        assert_same(finished(experiment, splits, start=kept.at(number)), straight)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_to_take_snapshots_changes_nothing_and_none_is_taken_with_gradients_pending(accumulation: int) -> None:
    experiment = replace(LONG, training=replace(LONG.training, accumulation=accumulation))
    kept, splits = Kept(), load(experiment.data)
    assert_same(finished(experiment, splits, saving=kept.saving), finished(experiment, splits))
    snapshots = [kept.at(number) for number in range(len(kept.files))]
    counts = [(len(each.records), each.checkpoint.progress.batches) for each in snapshots if each.checkpoint.progress]
    whole = [1, 2, 3, 4] if accumulation == 1 else [3]
    assert counts == [(epoch, batch) for epoch in (0, 1) for batch in whole]


def test_a_run_goes_on_with_what_it_was_charged_for_so_far() -> None:
    kept, splits = Kept(), load(LONG.data)
    straight = finished(LONG, splits, saving=kept.saving)
    start = kept.at(6)
    assert start.checkpoint.progress is not None
    assert (start.checkpoint.sample_passes, start.checkpoint.progress.images) == (straight.records[0].sample_passes, 75)
    assert 0 < straight.records[0].seconds < start.checkpoint.seconds < straight.records[1].seconds
    resumed = finished(LONG, splits, start=start)
    assert resumed.records[-1].sample_passes == straight.records[-1].sample_passes
    assert resumed.records[-1].seconds > start.checkpoint.seconds


def test_streamed_images_go_on(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        (folder := tmp_path / str(number % 2)).mkdir(exist_ok=True)
        pixels = torch.randint(0, 256, (12, 10, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    data = DataSettings(
        name="imagefolder", folder=str(tmp_path), image_size=8, resize_size=10, augment="resized-crop-flip"
    )
    experiment = replace(PLAIN, data=data, training=replace(PLAIN.training, batch_size=5))
    kept, splits = Kept(), load(data)
    assert isinstance(splits.train, StreamedPart)
    options: dict[str, Any] = {"placement": Placement(decoders=1)}
    straight = finished(experiment, splits, saving=kept.saving, **options)
    assert_same(finished(experiment, splits, start=kept.at(1), **options), straight)
