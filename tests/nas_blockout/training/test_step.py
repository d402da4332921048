"""One step of the optimizer: its order, its places to enter, and how a diverged model ends it."""

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.training.optimizers import make_optimizer
from nas_blockout.training.step import DivergedError, Step
from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableModel


class Linear(TrainableModel):
    """A linear model that records when its loss is taken, and fails on request."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.events: list[str] = []
        self.fails = False

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.events.append("loss")
        if self.fails:
            raise RuntimeError("expected probabilities")
        result: Tensor = self.linear(x.flatten(1))
        return result


def make_step(model: Linear) -> Step:
    settings = TrainingSettings(optimizer="sgd", momentum=0.9, learning_rate=0.1, epochs=1)
    return Step(model, make_optimizer(model, settings), settings)


def test_everything_enters_at_its_place() -> None:
    model = Linear()
    step = make_step(model)
    before = model.linear.weight.detach().clone()

    def transform(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        model.events.append("transform")
        return x * 0, y

    def after_backward() -> None:
        model.events.append("gradients")
        assert model.linear.weight.grad is not None
        assert not model.linear.weight.grad.any()  # of the transformed images
        assert torch.equal(model.linear.weight, before)
        model.linear.weight.grad.fill_(1.0)

    def after_step() -> None:
        model.events.append("updated")
        assert not torch.equal(model.linear.weight, before)

    step.transforms.append(transform)
    step.after_backward.append(after_backward)
    step.after_step.append(after_step)
    loss = step(torch.ones(4, 3, 1, 1), torch.tensor([0, 1, 0, 1]), torch.Generator(), done_epochs=0.0)
    assert model.events == ["transform", "loss", "gradients", "updated"]
    assert not loss.requires_grad


def test_a_model_that_fails_is_diverged_only_if_a_parameter_is_not_finite() -> None:
    model = Linear()
    step = make_step(model)
    model.fails = True
    batch = torch.ones(4, 3, 1, 1), torch.tensor([0, 1, 0, 1]), torch.Generator()
    with pytest.raises(RuntimeError, match="expected probabilities") as raised:
        step(*batch, done_epochs=0.0)
    assert not isinstance(raised.value, DivergedError)
    with torch.no_grad():
        model.linear.bias[0] = float("nan")
    with pytest.raises(DivergedError, match="expected probabilities"):
        step(*batch, done_epochs=0.0)
