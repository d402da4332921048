"""Learning rates against torch's own schedulers, and which parameters decay."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from nas_blockout.settings_fields import Conflict
from nas_blockout.training import NORMS_AND_BIASES, TrainingSettings, unmatched
from nas_blockout.training.optimizers import make_optimizer, set_learning_rate
from nas_blockout.training_protocol import ParameterGroup, TrainableModel, plain_groups, trainable

EPOCHS, STEPS, PEAK = 5, 8, 0.3
TOTAL = EPOCHS * STEPS


def one_cycle(optimizer: SGD, rise: float) -> lr_scheduler.LRScheduler:
    """Torch's cycle reaches its least rate at its last step, ours after it, like the cosine: a cycle of a step more."""
    return lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=TOTAL + 1, pct_start=(rise * TOTAL + 1) / (TOTAL + 1), cycle_momentum=False
    )


ORACLES: dict[str, tuple[dict[str, Any], Callable[[SGD], lr_scheduler.LRScheduler]]] = {
    "cosine": ({}, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)),
    "constant": ({}, lambda optimizer: lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    "linear": ({}, lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, TOTAL)),
    "step": ({}, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [TOTAL // 2, TOTAL * 3 // 4], 0.1)),
    "step, three times": (
        {"schedule_milestones": (0.25, 0.5, 0.875), "schedule_factor": 0.5},
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [10, 20, 35], 0.5),
    ),
    "one-cycle": ({}, lambda optimizer: one_cycle(optimizer, 0.3)),
    "one-cycle, late": ({"schedule_rise": 0.55}, lambda optimizer: one_cycle(optimizer, 0.55)),
}


def rates(settings: TrainingSettings) -> list[float]:
    optimizer = make_optimizer(trainable(nn.Linear(2, 2)), settings)
    found = []
    for step in range(TOTAL):
        set_learning_rate(optimizer, settings, step // STEPS + step % STEPS / STEPS)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.filterwarnings("ignore:Detected call of")  # the oracle steps without an optimizer that does
@pytest.mark.parametrize("name", ORACLES)
def test_a_schedule_is_that_of_torch_at_every_step(name: str) -> None:
    options, oracle = ORACLES[name]
    schedule: Any = name.partition(",")[0]
    optimizer = SGD(nn.Linear(2, 2).parameters(), lr=PEAK)
    scheduler = oracle(optimizer)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    settings = TrainingSettings(epochs=EPOCHS, learning_rate=PEAK, schedule=schedule, **options)
    assert rates(settings) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear", "step", "one-cycle"])
def test_warmup_multiplies_every_schedule(schedule: Any) -> None:
    settings = TrainingSettings(epochs=EPOCHS, learning_rate=PEAK, schedule=schedule)
    warmed = TrainingSettings(epochs=EPOCHS, learning_rate=PEAK, schedule=schedule, warmup_epochs=2)
    ramp = [min(1.0, step / (2 * STEPS)) for step in range(TOTAL)]
    expected = [scale * rate for scale, rate in zip(ramp, rates(settings), strict=True)]
    assert rates(warmed) == pytest.approx(expected, abs=1e-8)
    assert all(rate > 0 and math.isfinite(rate) for rate in rates(warmed))


class Net(TrainableModel):
    """A network with a norm, and memberships that never decay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.memberships = nn.Parameter(torch.zeros(5, 2))

    def parameter_groups(self) -> list[ParameterGroup]:
        network = nn.ModuleDict({"stem": self.stem, "norm": self.norm, "head": self.head})
        own: ParameterGroup = {"params": [self.memberships], "lr_multiplier": 2.0, "weight_decay": False}
        return [*plain_groups(network), own]


WEIGHTS, SMALL = {"stem.weight", "head.weight"}, {"stem.bias", "norm.weight", "norm.bias", "head.bias"}


@pytest.mark.parametrize(
    ("no_decay", "decaying"),
    [
        ((NORMS_AND_BIASES,), WEIGHTS),
        ((), WEIGHTS | SMALL),
        ((NORMS_AND_BIASES, "head.*"), {"stem.weight"}),
        (("*.bias",), WEIGHTS | {"norm.weight"}),
        (("weight",), {"stem.bias", "norm.bias", "head.bias"}),
    ],
)
def test_what_decays_is_what_the_settings_leave(no_decay: tuple[str, ...], decaying: set[str]) -> None:
    model = Net()
    optimizer = make_optimizer(model, TrainingSettings(weight_decay=0.25, no_decay=no_decay))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(names)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.25}
    found = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert found == decaying
    assert {group["lr_multiplier"] for group in optimizer.param_groups} == {1.0, 2.0}


def test_a_pattern_that_fits_nothing_is_a_mistake_with_its_remedy() -> None:
    model = Net()
    assert list(unmatched(model, (NORMS_AND_BIASES, "head.*", "norm.weight"))) == []
    near, far = unmatched(model, ("stem.wieght", "classifier.*"))
    assert isinstance(near, Conflict)
    assert near.keys == ("training.no_decay",)
    assert str(near).endswith("got 'stem.wieght'; did you mean 'stem.weight'?")
    assert str(far).endswith("got 'classifier.*'; names are such as memberships, stem.weight, stem.bias")
