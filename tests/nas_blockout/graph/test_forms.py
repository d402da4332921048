"""The form of a branched graph that is only run computes what the graph computes."""

from functools import cache
from typing import get_args

import pytest
import torch

from nas_blockout.graph.analysis import analyze
from nas_blockout.graph.branched import BranchedGraph, branch
from nas_blockout.graph.forms.terms import Division, FusedTerm
from nas_blockout.networks import Runtime
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


@pytest.mark.parametrize("name", ["mobile", "padded", "attention-module"])
def test_it_is_a_copy(name: str) -> None:
    branched, x = cases(name)[1], images(2)
    before = {key: value.clone() for key, value in branched.state_dict().items()}
    learned = [parameter.requires_grad for parameter in branched.parameters()]
    run = branched.for_inference()
    with torch.no_grad():
        for parameter in run.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in branched.state_dict().items())
    assert [parameter.requires_grad for parameter in branched.parameters()] == learned
    assert float(branched(x).detach().abs().max()) > 0


def test_batch_norm_after_an_operation_costs_nothing() -> None:
    for branched in cases("residual"):
        kinds = {type(module).__name__ for module in branched.for_inference().modules()}
        assert not any("Norm" in kind for kind in kinds)


def test_branches_that_share_nothing_stay_apart_from_one_operation_to_the_next() -> None:
    alone = cases("residual")[2].for_inference(operations="split")
    whole = cases("residual")[2].for_inference(operations="whole")
    count = {
        name: len([node for node in each.body.graph.nodes if node.target is torch.cat])
        for name, each in (("split", alone), ("whole", whole))
    }
    terms = [len(list(each.body.modules())) for each in (alone, whole)]
    assert terms[0] > terms[1]
    assert count["split"] <= 3  # at the shortcut that is padded, and what follows it


def test_what_was_put_together_once_is_read_again() -> None:
    run = cases("residual")[0].for_inference(operations="split", runtime="onnxruntime")
    parts = [node.args for node in run.body.graph.nodes if node.target is torch.narrow]
    assert len(parts) == len(set(parts)) == 4


def test_more_images_than_fit_at_once_are_taken_in_turn() -> None:
    run, x = cases("mobile")[0].for_inference(), images(7)
    expected = run(x)
    run.images_at_once = 3
    torch.testing.assert_close(run(x), expected, rtol=0, atol=BOUND)


def test_what_is_no_form_is_refused() -> None:
    branched = cases("padded")[0]
    with pytest.raises(ValueError, match="operations must be one of"):
        branched.for_inference(operations="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runtime must be one of"):
        branched.for_inference(runtime="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch must be at least 1"):
        branched.for_inference(batch=0)


def test_a_wide_network_of_branches_is_divided_and_a_small_one_is_not() -> None:
    torch.manual_seed(0)
    wide = torch.nn.Sequential(
        torch.nn.Conv2d(3, 128, 3, padding=1),
        *(each for _ in range(3) for each in (torch.nn.ReLU(), torch.nn.Conv2d(128, 128, 3, padding=1))),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 4),
    ).double()
    analysis = analyze(wide, (3, 32, 32))
    memberships = {
        layer.name: torch.nn.functional.one_hot(torch.arange(layer.width) % 2, 2).double() for layer in analysis.layers
    }
    memberships["classes"] = torch.ones(4, 2).double()
    branched = branch(analysis, memberships, wide.state_dict()).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for runtime in get_args(Runtime):
        run = branched.for_inference(runtime=runtime)
        torch.testing.assert_close(run(x), branched(x).detach(), rtol=0, atol=BOUND)
        convolutions = [each for each in run.modules() if isinstance(each, FusedTerm) and each.weight.dim() == 4]
        assert len(convolutions) > 4
    small = cases("residual")[2].for_inference(batch=1)
    assert len([each for each in small.modules() if isinstance(each, FusedTerm)]) == 6
