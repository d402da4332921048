"""What is expected of a graph after many changes of form is what a walk over all of it adds up."""

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from torch import fx

from nas_blockout.backbones.inference_cost import COSTS
from nas_blockout.graph.forms.expectation import Expectation
from nas_blockout.graph.forms.folded_operations import Folded
from nas_blockout.graph.forms.terms import Form, forms_of
from nas_blockout.graph.forms.traversal import Traversal
from nas_blockout.graph.forms.values import Program, program_of
from tests.nas_blockout.graph.masked_networks import analyzed, masked, random_memberships

LANES = 4
RATES = COSTS["torch"]


def program(name: str) -> tuple[Program, dict[fx.Node, tuple[Form, ...]]]:
    """A small network with branches, and the ways to divide its operations."""
    _, analysis = analyzed(name)
    branched = masked(name, random_memberships(analysis, 3, iter([0.5] * 99), seed=1)).branched
    found = program_of(copy.deepcopy(branched.body), branched.whole.shape)
    operations = {node: each for node, each in found.operations.items() if isinstance(each, Folded)}
    return found, {node: forms_of(each, lambda term: float(sum(term.size))) for node, each in operations.items()}


def walked(program: Program, forms: Mapping[fx.Node, Form]) -> list[float]:
    """The slow way: a walk over all of the graph."""
    walk = Traversal(program, forms, RATES, lanes=LANES)
    walk.run()
    return walk.times


@pytest.mark.parametrize("name", ["residual", "mobile", "dense", "fused-attention", "padded"])
def test_it_is_what_a_walk_over_all_of_the_graph_adds_up(name: str) -> None:
    graph, options = program(name)
    draws = random.Random(0)
    found = Expectation(graph, RATES, LANES)
    forms = {node: draws.choice(each) for node, each in options.items()}
    assert found.take_all(forms) == pytest.approx(walked(graph, forms))
    for _ in range(6):
        node = draws.choice(list(options))
        form = draws.choice(options[node])
        expected = walked(graph, {**forms, node: form})
        assert found.times_with(node, form) == pytest.approx(expected)
        assert found.forms == forms
        if draws.random() < 0.7:
            found.take(node, form)
            forms = {**forms, node: form}
            assert found.times == pytest.approx(expected)


def test_a_part_of_a_block_costs_a_copy_in_a_runtime_without_views() -> None:
    graph, options = program("residual")
    split = {node: max(forms, key=len) for node, forms in options.items()}
    copied, read = (Expectation(graph, replace(RATES, views=views), LANES).take_all(split) for views in (False, True))
    assert all(more > less for more, less in zip(copied, read, strict=True))


def test_what_a_change_does_not_reach_is_not_walked_over_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, options = program("residual")
    found = Expectation(graph, RATES, LANES)
    found.take_all({node: forms[0] for node, forms in options.items()})
    nodes: list[fx.Node] = []
    step = Traversal.step

    def counted(walk: Traversal, node: fx.Node, *rest: Any) -> Any:
        nodes.append(node)
        return step(walk, node, *rest)

    monkeypatch.setattr(Traversal, "step", counted)
    changes = [(node, form) for node, forms in options.items() for form in forms]
    for node, form in changes:
        found.times_with(node, form)
    first = len(nodes)
    assert 0 < first < len(changes) * len(graph.body.graph.nodes) / 4
    for node, form in changes:
        found.times_with(node, form)
    assert len(nodes) == first  # the second time all of it is known
