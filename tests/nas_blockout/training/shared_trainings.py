"""Trainings that several processes share, and what each of these processes does, as by torchrun.

`train_cases` trains the cases one after another and leaves in the folder what each rank found, and what the first one
would go on from inside an epoch. A case goes on from what is in the folder under its name; what follows an `@` in a
name tells apart where one case is gone on with.
"""

import io
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
RESIDUAL = replace(PLAIN, backbone=ResNetSettings(depth=14, width=0.25))  # six blocks, so 64 paths an image may take
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


# What a rank imports takes two seconds of a processor: one process imports it, and the ranks are forks of it. What a
# fork shares is what it has imported; no torch thread and no draw is in there.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class RankProcess:
    """A process that does what a program would, with what it writes.

    Args:
        environment: Its variables beside those of this process, as torchrun sets them.
        does: Is called in it, a function that can be pickled.
        arguments: Of that.
    """

    def __init__(self, environment: Mapping[str, str], does: Callable[..., None], *arguments: object) -> None:
        self._written = tempfile.NamedTemporaryFile(mode="r", encoding="utf-8")  # noqa: SIM115  # as long as this is
        self.process = _FORKS.Process(target=_in_rank, args=(self._written.name, dict(environment), does, *arguments))
        self.process.start()

    def text(self, *, seconds: float) -> str:
        """What it wrote, once it has ended; AssertionError if that takes longer."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it has not ended within {seconds} s"
        return self._written.read()


def _in_rank(written: str, environment: dict[str, str], does: Callable[..., None], *arguments: object) -> None:
    output = os.open(written, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    does(*arguments)


def run_text(text: str, *arguments: str) -> None:
    """Run the text of a program, as `python -W ignore -c` does."""
    warnings.simplefilter("ignore")
    sys.argv = ["-c", *arguments]
    exec(text, {"__name__": "__main__"})


def start_ranks(size: int, does: Callable[..., None], *arguments: object) -> list[RankProcess]:
    """Let as many processes do something, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [RankProcess(shared | {"RANK": str(rank)}, does, *arguments) for rank in range(size)]


def train_cases(folder: Path, cases: Sequence[str]) -> None:
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
