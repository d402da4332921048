"""Trainings that several processes share, and the program that one of these processes runs, as by torchrun.

`python -m tests.nas_blockout.training.shared_trainings FOLDER CASE...` trains the cases one after another and leaves in
the folder what each rank found, and what the first one would go on from inside an epoch. A case goes on from what is in
the folder under its name; what follows an `@` in a name tells apart where one case is gone on with.
"""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.data.tensor_dataset import Part
from nas_blockout.experiment import Experiment, Run, SavingRun, Snapshot
from nas_blockout.methods import METHODS
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.dropcluster import DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnectSettings
from nas_blockout.methods.memberships.blockout_settings import PAPER, BlockoutSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import ALONE, RankGroup, Ranks, TrainingSettings, training_loop

# 97 images in batches of 25 leave one of 22: neither is divisible by the ranks.
PLAIN = Experiment(
    data=DataSettings(train_samples=97, validation_samples=53, augment="shift"),
    backbone=ConvNetSettings((6, 8), (10,)),
    training=TrainingSettings(epochs=1, batch_size=25, learning_rate=0.01),
    seed=3,
)
RESIDUAL = replace(PLAIN, backbone=ResNetSettings(depth=20, width=0.5))
LEARNED = replace(
    PLAIN,
    method=replace(PAPER, clusters=2, masked="all", structure_lr_multiplier=30.0),
    distillation=DistillationSettings(target_macs=0.8, soft_target_weight=0.5),
    training=replace(PLAIN.training, epochs=3),
)
RECIPES = {
    "ema": {"ema": 0.8},
    "mixup": {"mixup": 0.4, "cutmix": 1.0},
    "accumulation": {"accumulation": 3},
    "recipes": {"ema": 0.8, "mixup": 0.4, "accumulation": 2, "gradient_clip": 0.3, "label_smoothing": 0.1},
}


def _cases() -> dict[str, Experiment]:
    cases = {
        name: replace(PLAIN, method=method.settings())
        for name, method in METHODS.items()
        if name not in ("blockdrop", "dropcluster")
    }
    gates = {"pretrain_fraction": 0.0, "policy_fraction": 0.0}
    return cases | {
        "dropcluster": replace(PLAIN, method=DropClusterSettings(ramp_epochs=0)),
        "dropcluster by batch": replace(PLAIN, method=DropClusterSettings(ramp_epochs=0, masks="batch")),
        "dropconnect by batch": replace(PLAIN, method=DropConnectSettings(masks="batch")),
        "blockout arm": replace(PLAIN, method=BlockoutSettings(clusters=2, estimator="arm")),
        "blockdrop": replace(RESIDUAL, method=BlockDropSettings(**gates)),
        "blockdrop sampled": replace(RESIDUAL, method=BlockDropSettings(**gates, finetune_paths="sampled")),
        "blockdrop policy": replace(RESIDUAL, method=BlockDropSettings(pretrain_fraction=0.0, policy_fraction=1.0)),
        "blockdrop gumbel": replace(RESIDUAL, method=BlockDropSettings(**gates, estimator="gumbel")),
        "two stages": LEARNED,
        **{
            name: replace(PLAIN, training=replace(PLAIN.training, epochs=2, **recipe))  # type: ignore[arg-type]
            for name, recipe in RECIPES.items()
        },
        # The last of its batches has two images: fewer than three ranks.
        "few rows": replace(PLAIN, data=replace(PLAIN.data, train_samples=52), method=METHODS["dropout"].settings()),
        "few rows blockdrop": replace(
            RESIDUAL, data=replace(PLAIN.data, train_samples=52), method=BlockDropSettings(**gates)
        ),
    }


CASES: Mapping[str, Experiment] = _cases()


@dataclass
class Kept:
    """Takes a snapshot whenever it is asked, as it is written to a file."""

    files: list[bytes] = field(default_factory=list)

    @property
    def saving(self) -> SavingRun:
        return SavingRun(lambda: True, self.take)

    def take(self, snapshot: Snapshot) -> None:
        torch.save(snapshot.to_state(), file := io.BytesIO())
        self.files.append(file.getvalue())

    def at(self, number: int) -> Snapshot:
        return Snapshot.from_state(torch.load(io.BytesIO(self.files[number]), weights_only=True))


@contextmanager
def doubled() -> Iterator[None]:
    """Compute in float64 within: what differs then by more than rounding is wrong, even where a decision depends on it.

    In float32 a rounding error may flip a path of BlockDrop, and with it all that follows.
    """
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def data_of(experiment: Experiment) -> Splits:
    """The data of an experiment in the default type of numbers."""
    splits = load(experiment.data)
    for name in ("train", "validation"):
        part = getattr(splits, name)
        setattr(splits, name, Part(part.images.to(torch.get_default_dtype()), part.labels, part.background))
    return splits


def trained(
    experiment: Experiment,
    ranks: Ranks = ALONE,
    *,
    start: Snapshot | None = None,
    saving: SavingRun | None = None,
    epochs: int | None = None,
) -> tuple[Run, Snapshot]:
    """A run that has ended, or has been left after so many epochs of its own, and what continues it from there."""
    run = Run(experiment, data_of(experiment), ranks=ranks, start=start, saving=saving)
    for _ in islice(run, epochs):
        last = run.snapshot()
    return run, last


def finding(run: Run, last: Snapshot) -> dict[str, Any]:
    """What a rank found: its records, its state at the end, and the result that the first one has."""
    outcome = run.outcome
    return {
        "records": json.dumps([record.to_json() for record in run.records]),
        "state": last.to_state(),
        "outcome": outcome.model.state_dict() if outcome else None,
        "teacher_passes": outcome.teacher_passes if outcome else None,
    }


def start_ranks(size: int, *program: str) -> list[subprocess.Popen[str]]:
    """Start a Python program in as many processes, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *program],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def main(folder: Path, cases: Sequence[str]) -> None:
    torch.set_num_threads(1)
    training_loop._STEPS_OF_RANKS = 1  # no epoch has as many as it takes else
    ranks = RankGroup.from_environment(os.environ)
    for case in cases:
        start, kept, experiment = None, Kept(), CASES[case.partition("@")[0]]
        if (snapshot := folder / f"{case}.start").exists() and ranks.leads:
            start = Snapshot.from_state(torch.load(snapshot, weights_only=True))
        with doubled():
            found = trained(experiment, ranks, start=start, saving=kept.saving if ranks.leads else None)
        torch.save(finding(*found), folder / f"{case}.{ranks.rank}")
        if ranks.leads:
            (folder / f"{case}.within").write_bytes(kept.files[len(kept.files) // 3])
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
