"""The form of a branched graph that is only run computes what the graph computes."""

from functools import cache
from typing import get_args

import pytest
import torch

from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.graph.forms.terms import Division
from tests.nas_blockout.graph.masked_networks import analyzed, dense_enough, images, masked, random_memberships
from tests.nas_blockout.graph.networks import NETWORKS

BOUND = 1e-10


@cache
def cases(name: str, *, seed: int = 0) -> list[BranchedGraph]:
    """Networks with branches: hardly any node left out, about half of the connections, one cluster a node."""
    _, analysis = analyzed(name)
    sparse = random_memberships(analysis, 3, iter([0.5] * 99), seed=seed)
    alone = {
        layer: torch.nn.functional.one_hot(torch.arange(len(rows)) % 3, 3).double() for layer, rows in sparse.items()
    }
    every = [dense_enough(analysis, clusters=3, seed=seed), sparse, alone]
    return [masked(name, memberships).branched for memberships in every]


@pytest.mark.parametrize("operations", get_args(Division))
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_the_same_however_it_is_divided(name: str, operations: Division) -> None:
    x = images(3)
    for branched in cases(name):
        run = branched.for_inference(operations=operations)
        torch.testing.assert_close(run(x), branched(x).detach(), rtol=0, atol=BOUND)
        assert not any(parameter.requires_grad for parameter in run.parameters())
