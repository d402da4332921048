"""To which end hand-made membership probabilities came, and that a training says it of every layer that learns."""

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import Experiment, Run, Snapshot
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.membership_ends import end_of
from nas_blockout.training import TrainingSettings

HALF = torch.full((40, 4), 0.5)
DECIDED = (torch.arange(160).view(40, 4) % 2 * 0.94 + 0.03).roll(1, 0)  # .03 and .97, half of each


def part(share: float, value: float, rest: float = 0.5) -> Tensor:
    """Probabilities of which a share is one value and the rest another, spread over nodes and clusters."""
    flat = torch.full((160,), rest)
    flat[: round(160 * share)] = value
    return flat[torch.randperm(160, generator=torch.Generator().manual_seed(0))].view(40, 4)


@pytest.mark.parametrize(
    ("first", "last", "end"),
    [
        (HALF, DECIDED, "diverged"),
        (HALF, part(0.9, 0.95, rest=0.02), "diverged"),
        (HALF, part(0.97, 0.94, rest=0.02), "in between"),  # all but a few on one side: nothing is parted
        (HALF, torch.where(part(0.55, 1.0) == 1, DECIDED, HALF), "diverged"),
        (HALF, torch.where(part(0.45, 1.0) == 1, DECIDED, HALF), "in between"),
        (HALF, HALF, "stayed"),
        (HALF, HALF + 0.09, "stayed"),
        (HALF, torch.where(part(0.5, 1.0) == 1, HALF - 0.1, HALF + 0.09), "stayed"),  # as the paper's recipe left P
        (HALF, HALF + 0.11, "in between"),
        (HALF, part(0.04, 0.99), "stayed"),
        (HALF, part(0.06, 0.99), "in between"),  # little on average, but some nodes were decided
        (DECIDED, DECIDED * 0.98 + 0.01, "stayed"),  # separated by what it began with, such as magnitudes
        (DECIDED, 1 - DECIDED, "diverged"),
        (HALF, torch.full((40, 4), 0.96), "all ones"),
        (torch.full((40, 4), 0.98), torch.full((40, 4), 0.99), "ones from the start"),
        (torch.full((40, 4), 0.94), torch.full((40, 4), 0.97), "all ones"),
        (HALF, torch.full((40, 4), 0.03), "all zeros"),
        (torch.full((40, 4), 0.04), torch.full((40, 4), 0.03), "all zeros"),
        (HALF, torch.tensor([[0.9, 0.001, 0.001, 0.001]] * 40), "one cluster"),
        (HALF[:, :1], torch.tensor([[0.02], [0.98]] * 20), "diverged"),
        (HALF, torch.full((40, 4), 0.8), "in between"),
    ],
)  # fmt: skip
def test_the_end_of_hand_made_probabilities(first: Tensor, last: Tensor, end: str) -> None:
    assert end_of(first, last) == end


@pytest.mark.parametrize(("first", "last"), [(HALF, HALF[:3]), (HALF[:0], HALF[:0])])
def test_probabilities_of_other_nodes_are_refused(first: Tensor, last: Tensor) -> None:
    with pytest.raises(ValueError, match="first and last must be probabilities of the same nodes, got shapes"):
        end_of(first, last)


LEARNED = Experiment(
    data=DataSettings(train_samples=50, validation_samples=50),
    backbone=ConvNetSettings((6,), (8,)),
    method=replace(PAPER, clusters=2, structure_lr_multiplier=300.0),
    training=TrainingSettings(epochs=3, batch_size=25),
)


@pytest.mark.parametrize("distillation", [None, DistillationSettings()], ids=["folded", "distilled"])
def test_a_training_says_of_every_layer_to_which_end_it_came_also_if_it_was_resumed(
    distillation: DistillationSettings | None,
) -> None:
    experiment = replace(LEARNED, distillation=distillation)
    splits = load(experiment.data)

    def finished(run: Run) -> dict[str, str]:
        for _ in run:
            pass
        assert run.outcome is not None
        found = run.outcome.derivation or run.outcome
        shapes = {name: (len(p), len(p[0])) for name, p in found.probabilities.items()}
        assert shapes == {"features": (6, 2), "hidden": (8, 2), "classes": (10, 2)}
        return dict(run.outcome.membership_ends)

    interrupted = Run(experiment, splits)
    for _ in range(2):
        next(interrupted)
    file = io.BytesIO()
    torch.save(interrupted.snapshot().to_state(), file)
    file.seek(0)
    straight = finished(interrupted)
    assert set(straight) == {"features", "hidden", "classes"}
    assert set(straight.values()) - {"stayed"}  # these steps move it, so the first P is that before training
    resumed = finished(Run(experiment, splits, start=Snapshot.from_state(torch.load(file, weights_only=True))))
    assert resumed == straight


def test_masks_that_are_not_learned_come_to_no_end() -> None:
    fixed = replace(LEARNED, method=replace(PAPER, clusters=2, mode="hard-fixed"))
    for experiment in (fixed, Experiment(data=fixed.data, backbone=fixed.backbone, training=fixed.training)):
        run = Run(experiment, load(experiment.data))
        for _ in run:
            pass
        assert run.outcome is not None
        assert run.outcome.membership_ends == {}
        assert run.outcome.probabilities == {}
