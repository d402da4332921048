"""Soft targets: the loss equals its definition in value and gradient, and a teacher changes nothing but the loss."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.experiment import Experiment, Run, Snapshot, build
from nas_blockout.experiment.knowledge_distillation import StudentWithTeacher, soft_target_loss
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.dropout import DropoutSettings
from nas_blockout.methods.memberships.blockout_settings import PAPER
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

LEARNED = Experiment(
    data=DataSettings(train_samples=100, validation_samples=100),
    backbone=ConvNetSettings((6, 8), (10,), normalize_logits=True),
    method=replace(PAPER, clusters=2, masked="all", structure_lr_multiplier=30.0),
    training=TrainingSettings(epochs=4, batch_size=25),
    distillation=DistillationSettings(target_macs=0.8, soft_target_weight=0.7, temperature=3.0),
    seed=3,
)
PRUNED = replace(
    LEARNED, method=DropoutSettings(0.3), distillation=None, pruning=PruningSettings(0.6, soft_target_weight=0.7)
)
CONFUSED = replace(
    LEARNED, method=DropoutSettings(0.3), distillation=None, confusion=ConfusionSettings(soft_target_weight=0.7)
)
TAUGHT = {"distillation": LEARNED, "pruning": PRUNED, "confusion": CONFUSED}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(LEARNED.data)


def finished(experiment: Experiment, splits: Splits, start: Snapshot | None = None) -> Run:
    run = Run(experiment, splits, start=start)
    for _ in run:
        pass
    return run


def softened(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def loop_loss(z: Tensor, v: Tensor, y: Tensor, weight: float, temperature: float) -> tuple[float, list[list[float]]]:
    """The loss and its gradient for z, image by image and class by class, as sections 2 and 2.1 of the paper say."""
    total, gradient = 0.0, []
    for student, teacher, label in zip(z.tolist(), v.tolist(), y.tolist(), strict=True):
        p, q, plain = softened(teacher, temperature), softened(student, temperature), softened(student, 1.0)
        divergence = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        total += -(1 - weight) * math.log(plain[label]) + weight * temperature**2 * divergence
        row = []
        for position in range(len(student)):
            hard = plain[position] - (position == label)
            soft = temperature**2 * (q[position] - p[position]) / temperature
            row.append(((1 - weight) * hard + weight * soft) / len(z))
        gradient.append(row)
    return total / len(z), gradient


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 6), st.floats(0, 1), st.floats(0.5, 10))
@settings(max_examples=50, deadline=None)
def test_the_loss_equals_its_definition_in_value_and_gradient(
    seed: int, images: int, classes: int, weight: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, v = (3 * torch.randn(images, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.randint(classes, (images,), generator=generator)
    z.requires_grad_()
    v.requires_grad_()
    loss = soft_target_loss(z, v, y, weight=weight, temperature=temperature)
    loss.backward()
    value, gradient = loop_loss(z.detach(), v.detach(), y, weight, temperature)
    assert float(loss.detach()) == pytest.approx(value, abs=1e-12, rel=1e-12)
    torch.testing.assert_close(z.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-10, atol=1e-14)
    assert v.grad is None, "the teacher learns nothing"


def test_whoever_says_what_the_teacher_says_loses_nothing() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert float(soft_target_loss(z, z, torch.zeros(4, dtype=torch.int64), weight=1, temperature=5)) == 0


def test_without_weight_the_loss_is_that_of_the_labels() -> None:
    z, v = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0])
    assert torch.equal(soft_target_loss(z, v, y, weight=0, temperature=2), nn.functional.cross_entropy(z, y))


class Recording(nn.Module):
    """Keeps what it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.seen.append(x.clone())
        found: Tensor = self.norm(self.linear(x))
        return found


def test_the_teacher_sees_the_same_images_in_eval_mode_and_is_not_trained() -> None:
    student, teacher = Recording(), Recording()
    teacher_logits = StudentWithTeacher(student, teacher, weight=0.5, temperature=2.0).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    x, y = torch.randn(6, 3), torch.tensor([0, 1] * 3)
    optimizer = torch.optim.SGD([p for p in teacher_logits.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        teacher_logits.loss(x, y, torch.Generator()).backward()
        optimizer.step()
    assert student.training
    assert not teacher.training
    assert len(teacher.seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(teacher.seen, student.seen, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher_logits.telemetry() == {"teacher/forward_passes": 18.0}
    teacher_logits.eval()
    assert torch.equal(teacher_logits(x), student(x))
    assert len(teacher.seen) == 3, "nobody is teacher_logits in eval mode"


@pytest.mark.parametrize("experiment", TAUGHT.values(), ids=TAUGHT)
@pytest.mark.parametrize("stop_after", [2, 3])
def test_a_taught_run_that_is_resumed_gives_the_same_numbers(
    experiment: Experiment, stop_after: int, splits: Splits
) -> None:
    straight = finished(experiment, splits)
    interrupted = Run(experiment, splits)
    for _ in range(stop_after):
        next(interrupted)
    file = io.BytesIO()
    torch.save(interrupted.snapshot().to_state(), file)
    file.seek(0)
    resumed = finished(experiment, splits, Snapshot.from_state(torch.load(file, weights_only=True)))
    assert [replace(record, seconds=0.0) for record in resumed.records] == [
        replace(record, seconds=0.0) for record in straight.records
    ]
    assert resumed.outcome is not None
    assert straight.outcome is not None
    assert resumed.outcome.teacher_passes == straight.outcome.teacher_passes == 200
    ours, theirs = resumed.outcome.model.state_dict(), straight.outcome.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_passes_of_the_teacher_are_counted_beside_the_sample_passes(splits: Splits) -> None:
    run = finished(LEARNED, splits)
    assert LEARNED.distillation is not None
    plain = finished(replace(LEARNED, distillation=replace(LEARNED.distillation, soft_target_weight=0.0)), splits)
    assert [record.sample_passes for record in run.records] == [record.sample_passes for record in plain.records]
    counted = [record.telemetry.get("teacher/forward_passes") for record in run.records]
    assert counted == [None, None, 100.0, 200.0]
    assert plain.outcome is not None
    assert plain.outcome.teacher_passes == 0
    assert run.records[1].train_loss == plain.records[1].train_loss, "the first part is the same"
    assert run.records[-1].train_loss != plain.records[-1].train_loss


def test_the_teacher_is_the_network_that_learned_under_its_probabilities(splits: Splits) -> None:
    learned = build(LEARNED, splits).eval()
    assert isinstance(learned, Blockout)
    teacher = Run(LEARNED, splits)._plain(learned)
    x = splits.validation.images[:9]
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), learned(x), rtol=1e-5, atol=1e-6)


def test_a_student_that_hears_the_teacher_alone_comes_to_say_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher_logits = StudentWithTeacher(Recording(), Recording(), weight=1.0, temperature=3.0).train()
    x, y = torch.randn(64, 3, generator=generator), torch.zeros(64, dtype=torch.int64)
    optimizer = torch.optim.Adam([p for p in teacher_logits.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(100):
        loss = teacher_logits.loss(x, y, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("kind", [DistillationSettings, PruningSettings, ConfusionSettings])
@pytest.mark.parametrize("values", [{"soft_target_weight": -0.1}, {"soft_target_weight": 1.1}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(kind: Any, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"(soft_target_weight must be in \[0, 1\]|temperature must be above 0), got"):
        kind(**values)
