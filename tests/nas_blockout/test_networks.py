"""Connections check themselves; a network that says nothing of itself fails with its name."""

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.networks import Connection, Network


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", "features", "classes"), "weight must be a name"),
        (("head.weight", "", "classes"), "source must be a name"),
        (("head.weight", None, ""), "target must be a name"),
        (("head.weight", None, "classes", 0), "positions must be at least 1, got positions=0 for 'head.weight'"),
    ],
)
def test_an_impossible_connection_is_refused(values: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Connection(*values)  # type: ignore[arg-type]


class Silent(Network):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.linear(x)


def test_what_runs_by_default_is_a_copy() -> None:
    network, x = Silent(), torch.ones(1, 2)
    copied = network.for_inference(runtime="onnxruntime", batch=1)
    assert torch.equal(copied(x), network(x))
    copied.get_parameter("linear.weight").data.zero_()
    assert not torch.equal(copied(x), network(x))


def test_a_network_without_connections_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Silent must say which layers of nodes its weights connect"):
        _ = Silent().connections
