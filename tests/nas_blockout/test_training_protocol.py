"""What the training loop asks of a model: the defaults, and that a plain network is trained by them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones import BACKBONES
from nas_blockout.data import DataSettings, load
from nas_blockout.experiment import Experiment, build
from nas_blockout.methods import METHODS
from nas_blockout.training_protocol import PlainModel, TrainableLayer, TrainableModel, trainable


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.last(self.norm(self.first(x)))


class Same(Plain, TrainableModel):
    """The same network as a model of its own."""


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def test_a_plain_network_is_wrapped_and_a_model_is_itself() -> None:
    plain, own = Plain(), Same()
    wrapped = trainable(plain)
    assert isinstance(wrapped, PlainModel)
    assert wrapped.network is plain
    assert trainable(own) is own


@pytest.mark.parametrize("network", [Plain(), Same()], ids=["plain", "model"])
def test_the_defaults_are_those_of_a_plain_network(network: nn.Module) -> None:
    model, generator = trainable(network), torch.Generator()
    assert torch.equal(model.loss(X, Y, generator), F.cross_entropy(network(X), Y))
    decaying, others = model.parameter_groups()
    assert [id(p) for p in decaying["params"]] == [id(network.first.weight), id(network.last.weight)]
    assert {id(p) for p in others["params"]} == {id(p) for p in network.parameters() if p.dim() == 1}
    assert (decaying["weight_decay"], others["weight_decay"]) == (True, False)
    assert decaying["lr_multiplier"] == others["lr_multiplier"] == 1.0
    state = {name: value.clone() for name, value in network.state_dict().items()}
    model.prepare_epoch(0, 3)
    assert model.telemetry() == {}
    assert not model.needs_calibration
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_every_hook_of_a_method_is_one_of_the_protocol(method: str) -> None:
    """A layer with a hook's name that is no `TrainableLayer` would never be called."""
    backbone = "resnet" if method == "blockdrop" else "convnet"
    settings = {"resnet": {"depth": 8}, "convnet": {"channels": (4,), "hidden": (6,)}}[backbone]
    experiment = Experiment(backbone=BACKBONES[backbone].settings(**settings), method=METHODS[method].settings())
    model = build(experiment, load(DataSettings(train_samples=20, validation_samples=20)))
    hooks = ("loss", "parameter_groups", "prepare_epoch", "telemetry", "needs_calibration")
    for module in model.modules():
        named = [hook for hook in hooks if hook in dir(type(module)) or hook in vars(module)]
        assert not named or isinstance(module, TrainableLayer), (type(module), named)
