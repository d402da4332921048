"""Rows of a weight are bundled by what they read, in time that does not grow with rows times inputs."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.rewrite.bundles import (
    BundledOperation,
    Call,
    ConstantNodes,
    Memberships,
    bundles_of,
    divide,
    row_order,
    runs_of,
)
from nas_blockout.graph.rewrite.layout import Axis

LINEAR = Call(0)


def memberships_of(clusters: Tensor, *, rigid: tuple[int, ...] = ()) -> Memberships:
    """Memberships of nodes from 1 on; row 0 stands for no node."""
    every = torch.cat([torch.zeros(1, clusters.shape[1], dtype=torch.bool), clusters.bool()])
    stays = torch.zeros(len(every), dtype=torch.bool)
    stays[list(rigid)] = True
    kept = every.any(1) | stays
    kept[0] = True
    return Memberships(every, kept, stays)


def reads_row_by_row(memberships: Memberships, targets: Tensor, sources: Tensor, groups: int) -> list[set[int]]:
    rows, columns = len(targets) // groups, len(sources) // groups
    return [
        {
            column
            for column in range(len(sources))
            if row // rows == column // columns
            and (
                sources[column] == 0 or bool((memberships.clusters[node] & memberships.clusters[sources[column]]).any())
            )
        }
        for row, node in enumerate(targets)
    ]


@given(data=st.data(), clusters=st.integers(1, 4), groups=st.sampled_from([1, 1, 2, 3]))
def test_sets_of_reads_are_those_of_each_row(data: st.DataObject, clusters: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    nodes = 12
    memberships = memberships_of(torch.rand(nodes, clusters, generator=generator) < 0.4)
    targets = torch.randint(1, nodes + 1, (groups * data.draw(st.integers(1, 5)),), generator=generator)
    sources = torch.randint(0, nodes + 1, (groups * data.draw(st.integers(1, 5)),), generator=generator)
    kept = memberships.kept[sources].nonzero().flatten()
    axis = Axis.in_order(kept[torch.randperm(len(kept), generator=generator)], len(sources))
    axis = axis or Axis.identity(len(sources))
    set_of, reads = divide(memberships, targets, sources, axis, groups=groups)
    expected = reads_row_by_row(memberships, targets, sources, groups)
    assert [set(reads[number].nonzero().flatten().tolist()) for number in set_of] == expected
    order = row_order(memberships, targets, set_of)
    bundles = bundles_of(set_of, reads, order, axis, groups=groups)
    assert sorted(row for bundle in bundles for row in bundle.rows.tolist()) == sorted(order.tolist())
    assert len(bundles) == len({frozenset(expected[row]) for row in order.tolist()})
    for bundle in bundles:
        places = [int(axis.places[column]) for row in bundle.rows for column in sorted(expected[int(row)])]
        assert bundle.places.tolist() == sorted(set(places))


def test_rows_of_one_bundle_stand_together_where_nothing_else_writes_the_layer() -> None:
    # {0} and {0, 1} read the same where no source is in cluster 1.
    memberships = memberships_of(torch.tensor([[1, 0], [1, 1], [1, 0], [0, 1], [1, 0]]))
    targets, sources = torch.tensor([1, 2, 3, 4]), torch.tensor([5])
    axis = Axis.identity(1)
    set_of, reads = divide(memberships, targets, sources, axis, groups=1)
    order = row_order(memberships, targets, set_of)
    rows = [bundle.rows.tolist() for bundle in bundles_of(set_of, reads, order, axis, groups=1)]
    assert sorted(map(sorted, rows)) == [[0, 1, 2], [3]]
    assert [row for each in rows for row in each] == order.tolist()  # so that no copy restores the order


def test_nodes_of_two_clusters_stand_so_that_each_cluster_is_one_run() -> None:
    generator = torch.Generator().manual_seed(0)
    memberships = memberships_of(torch.randint(0, 2, (40, 2), generator=generator))
    order = row_order(memberships, torch.arange(1, 41), None)
    for cluster in range(2):
        members = memberships.clusters[order + 1, cluster].nonzero().flatten()
        assert len(runs_of(members)) == 1


def test_rigid_nodes_keep_their_order_and_blocks_stay_apart() -> None:
    memberships = memberships_of(torch.tensor([[0, 1], [1, 0], [0, 0]]), rigid=(1, 2, 3))
    assert row_order(memberships, torch.tensor([1, 2, 3]), None).tolist() == [0, 1, 2]
    memberships = memberships_of(torch.tensor([[1, 1], [0, 0], [0, 1]]))
    fused = torch.tensor([1, 2, 3, 1, 2, 3])  # two of three nodes stay, in either half
    assert row_order(memberships, fused, None).tolist() == [2, 0, 5, 3]


def operation(
    weight: Tensor, bias: Tensor | None, reads: Tensor, *, call: Call = LINEAR, order: Tensor | None = None
) -> BundledOperation:
    """An operation whose rows read what `reads` says, shape ``(rows, inputs)``."""
    sets, set_of = reads.unique(dim=0, return_inverse=True)
    axis = Axis.identity(reads.shape[1])
    order = torch.arange(len(weight)) if order is None else order
    bundles = bundles_of(set_of, sets, order, axis, groups=1)
    return BundledOperation(call, bundles, weight, bias, axis=axis, order=order, groups=1)


@pytest.mark.parametrize("bias", [True, False])
def test_an_operation_computes_its_masked_weight(bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(9, 7, generator=generator), torch.randn(4, 5, 7, generator=generator)
    offset = torch.randn(9, generator=generator) if bias else None
    reads = torch.rand(9, 7, generator=generator) < 0.5
    reads[2] = False
    order = torch.randperm(9, generator=generator)
    expected = F.linear(x, weight * reads, offset)[..., order]
    actual = operation(weight, offset, reads, order=order)(x)
    torch.testing.assert_close(actual, expected)


def test_constant_nodes_of_a_convolution_are_no_bias_of_what_reads_them_at_the_border() -> None:
    weight, bias = torch.randn(3, 2, 3, 3), torch.randn(3)
    reads = torch.tensor([[True, False], [False, False], [True, True]])
    call = Call(2, ((1, 1), (1, 1), (1, 1)))
    nodes = operation(weight, bias, reads, call=call)(torch.randn(2, 2, 5, 5))
    assert torch.equal(nodes[:, 1], bias[1].expand(2, 5, 5))
    after = F.conv2d(nodes, torch.ones(1, 3, 3, 3), padding=1)
    assert after.shape == (2, 1, 5, 5)


@pytest.mark.parametrize(("shape", "dim"), [((1, 3, 4, 4), 1), ((1, 5, 3), 2), ((5, 1, 3), 2)])
def test_nodes_of_which_none_reads_anything_are_made_for_every_image(shape: tuple[int, ...], dim: int) -> None:
    bias = torch.randn(3)
    images = shape.index(1)
    nodes = ConstantNodes(bias, shape, dim=dim, batch_dim=images)(torch.zeros(6, 1))
    assert nodes.shape == tuple(6 if place == images else size for place, size in enumerate(shape))
    assert torch.equal(nodes.movedim(dim, -1).reshape(-1, 3), bias.expand(nodes.numel() // 3, 3))
    assert not ConstantNodes(None, shape, dim=dim, batch_dim=images)(torch.zeros(6, 1)).any()


def test_gradients_reach_every_parameter_of_an_operation() -> None:
    reads = torch.tensor([[True, False], [False, False], [True, True]])
    module = operation(torch.randn(3, 2), torch.randn(3), reads)
    module(torch.randn(4, 2)).square().sum().backward()
    assert len(list(module.parameters())) == 5
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in module.parameters())


def test_runs_of_places() -> None:
    assert runs_of(torch.tensor([], dtype=torch.long)) == ()
    assert runs_of(torch.tensor([3])) == ((3, 4),)
    assert runs_of(torch.tensor([0, 1, 2, 5, 7, 8])) == ((0, 3), (5, 6), (7, 9))


def test_the_first_linear_layer_of_vgg_is_divided_in_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    memberships = memberships_of(torch.rand(512 + 4096, 4, generator=generator) < 0.5)
    sources = torch.arange(1, 513).repeat_interleave(49)
    targets = torch.arange(513, 513 + 4096)
    axis = Axis.in_order(memberships.kept[sources].nonzero().flatten(), len(sources))
    assert axis is not None
    started = time.perf_counter()
    set_of, reads = divide(memberships, targets, sources, axis, groups=1)
    bundles = bundles_of(set_of, reads, row_order(memberships, targets, set_of), axis, groups=1)
    assert time.perf_counter() - started < 5
    assert len(bundles) <= 2**4


def test_a_bundle_that_reads_everything_reads_it_without_a_copy() -> None:
    module = operation(torch.randn(3, 2), None, torch.ones(3, 2, dtype=torch.bool))
    (bundle,) = module.bundles
    x = torch.randn(4, 2)
    assert bundle.read(x) is x
    assert isinstance(module.bundles, nn.ModuleList)
