"""The builder: bundles, memory order, and that a branched network equals its groups computed one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import BACKBONES, dense_of, scaled_to, stages_of
from nas_blockout.backbones.branched import BranchedNetwork, Bundle, Sites, bundles_of, complete, macs_of, node_order
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from search_spaces.branched import Hierarchy, hierarchical

SHAPE, CLASSES = (2, 8, 8), 6
STAGES = stages(ConvNetSettings((8, 12), (10,)), SHAPE, CLASSES)
HIERARCHIES = st.builds(
    Hierarchy,
    first_split=st.integers(0, 2),
    branches=st.integers(2, 3),
    splits_again=st.booleans(),
    skew=st.floats(0, 1),
    shared=st.floats(0, 0.5),
    assignment=st.integers(0, 100),
)


def network_of(architecture: Architecture, *, normalize: bool = False) -> BranchedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BranchedNetwork(STAGES, architecture, channels=2, normalize_logits=normalize)
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
    return network.eval()


def group_by_group(network: BranchedNetwork, x: Tensor) -> Tensor:
    """The slow oracle: every group gathers the groups it reads by name and computes its own nodes."""
    values = {(0, 0): x}
    for index, (stage, layer) in enumerate(zip(network.plan, network.full.layers, strict=True)):
        module = network.stages[stage.name]
        bundles = bundles_of(network.full, 2)[index]
        order = [position for bundle in bundles for position in bundle.groups]
        found, node = {}, 0
        for bundle, operation in zip(bundles, module.operations, strict=True):  # type: ignore[arg-type, call-overload]
            start = 0
            for position in bundle.groups:
                width = layer.groups[position].width
                if index == 0:
                    read = x
                else:
                    before = node_order(network.full, 2)[index - 1]
                    names = [
                        p for p in before if layer.groups[position].overlap(network.full.layers[index - 1].groups[p])
                    ]
                    read = torch.cat([values[index - 1, p] for p in names], 1)
                weight = operation.weight[start : start + width]
                if stage.kind == "convolution":
                    out = F.conv2d(read, weight, padding=stage.kernel // 2)
                else:
                    bias = operation.bias[start : start + width] if operation.bias is not None else None
                    out = F.linear(read, weight, bias)
                if module.normalize is not None:
                    norm = module.normalize
                    rows = slice(node, node + width)
                    out = F.relu(
                        F.batch_norm(
                            out, norm.running_mean[rows], norm.running_var[rows], norm.weight[rows], norm.bias[rows]
                        )
                    )
                if stage.pool == 0:
                    out = out.mean((2, 3))
                elif stage.pool > 1:
                    out = F.max_pool2d(out, stage.pool)
                found[index, position] = out
                start, node = start + width, node + width
        assert len(order) == len(layer.groups)
        values = found
    logits = torch.empty(len(x), CLASSES)
    for position, group in enumerate(network.full.layers[-1].groups):
        logits[:, list(group.classes or ())] = values[len(STAGES) - 1, position]
    return logits


@given(HIERARCHIES)
@settings(max_examples=30, deadline=None)
def test_branched_network_equals_its_groups_computed_one_by_one(hierarchy: Hierarchy) -> None:
    network = network_of(hierarchical(hierarchy, STAGES))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), group_by_group(network, x), rtol=1e-4, atol=1e-5)


def test_groups_that_read_the_same_are_one_operation() -> None:
    architecture = Architecture(
        2,
        (
            Layer("features", (Group((0, 1), 12),)),
            Layer("hidden", (Group((0,), 4), Group((1,), 6))),
            Layer("classes", (Group((0,), 2, (0, 3)), Group((0, 1), 1, (5,)), Group((1,), 3, (1, 2, 4)))),
        ),
    )
    found = bundles_of(complete(architecture, STAGES), 2)
    assert found[0] == (Bundle((0,), ((0, 2),), 8),)
    assert found[2] == (Bundle((0, 1), ((0, 12),), 10),)  # both hidden groups read all features: one operation
    assert found[3] == (
        Bundle((0,), ((0, 4),), 2),
        Bundle((1,), ((0, 10),), 1),
        Bundle((2,), ((4, 10),), 3),
    )


def test_a_dense_network_is_one_operation_a_stage_and_knows_its_connections() -> None:
    network = network_of(dense_of(STAGES))
    assert [len(stage.operations) for stage in network.stages.values()] == [1, 1, 1, 1]  # type: ignore[arg-type]
    assert [(c.sources, c.targets, c.positions) for c in network.connections] == [
        ((), ("conv1",), 64),
        (("conv1",), ("features",), 16),
        (("features",), ("hidden",), 1),
        (("hidden",), ("classes",), 1),
    ]
    total = sum(network.get_parameter(c.weight).numel() * c.positions for c in network.connections)
    assert total == macs_of(dense_of(STAGES), STAGES, 2)


def backward_operations(output: Tensor) -> set[str]:
    """Return the names of the operations that give the gradient of an output."""
    found, pending = set[str](), [output.grad_fn]
    while pending:
        if (node := pending.pop()) is not None:
            found.add(node.name())
            pending += [before for before, _ in node.next_functions]
    return found


def test_a_dense_stage_reads_the_stage_before_as_it_is() -> None:
    """A slice of all nodes computes the same, and its gradient fills a tensor with zeros and copies all of it."""
    hierarchy = Hierarchy(first_split=1, branches=2, splits_again=False, skew=0, shared=0, assignment=0)
    x = torch.ones(3, *SHAPE)
    assert "SliceBackward0" not in backward_operations(network_of(dense_of(STAGES))(x))
    assert "SliceBackward0" in backward_operations(network_of(hierarchical(hierarchy, STAGES))(x))


def test_branches_have_no_single_weight_between_layers() -> None:
    hierarchy = Hierarchy(first_split=1, branches=2, splits_again=False, skew=0, shared=0, assignment=0)
    with pytest.raises(ValueError, match="this one has branches"):
        _ = network_of(hierarchical(hierarchy, STAGES)).connections


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Layer("other", (Group((0,), 6, tuple(range(6))),)),), "must be the last stages"),
        ((Layer("classes", (Group((0,), 5, tuple(range(5))),)),), "holds 5 classes, the data 6"),
    ],
)
def test_architectures_of_other_networks_are_refused(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete(Architecture(1, layers), STAGES)


def test_training_reaches_every_parameter_and_regularizers_get_the_generator() -> None:
    hierarchy = Hierarchy(first_split=0, branches=2, splits_again=True, skew=0.5, shared=0.2, assignment=3)
    sites = Sites(nodes=lambda: Dropout(DropoutSettings(0.5)))
    network = BranchedNetwork(STAGES, hierarchical(hierarchy, STAGES), channels=2, sites=sites).train()
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    first = network(x, generator)
    assert not torch.equal(first, network(x, generator))
    first.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_scaling_comes_near_to_the_macs_that_are_asked_for(share: float) -> None:
    backbone = ConvNetSettings((32, 64), (128,))
    dense = stages_of(backbone, (1, 8, 8), 10)
    target = round(share * macs_of(dense_of(dense), dense, 1))
    found = stages_of(scaled_to(backbone, target, (1, 8, 8), 10), (1, 8, 8), 10)
    assert macs_of(dense_of(found), found, 1) == pytest.approx(target, rel=0.02)


def test_stages_follow_the_shape_of_the_image() -> None:
    plan = stages(ConvNetSettings((4, 8, 8), (5, 6)), (3, 28, 28), 10)
    assert [(stage.name, stage.positions, stage.pool) for stage in plan] == [
        ("conv1", 784, 2),
        ("conv2", 196, 2),
        ("features", 49, 0),
        ("hidden1", 1, 1),
        ("hidden2", 1, 1),
        ("classes", 1, 1),
    ]
    assert "convnet" in BACKBONES
    with pytest.raises(ValueError, match="each of channels must be at least 1, got channels=0"):
        ConvNetSettings((0,))
