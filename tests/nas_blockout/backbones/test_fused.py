"""The form that is run: exact, without copies where none is needed, and exportable."""

import io
import warnings
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Sites
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.division import Operations
from nas_blockout.backbones.fused import FusedNetwork, FusedOperation, FusedStage
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from search_spaces.branched import Hierarchy, hierarchical

SHAPE, CLASSES = (2, 8, 8), 6
STAGES = stages(ConvNetSettings((6, 8, 12), (8,)), SHAPE, CLASSES)
PARALLEL = Architecture(
    4,
    (
        Layer("conv2", tuple(Group((b,), 2) for b in range(4))),
        Layer("features", tuple(Group((b,), 3) for b in range(4))),
        Layer("hidden", tuple(Group((b,), 2) for b in range(4))),
        Layer("classes", (Group((0,), 2, (1, 5)), Group((1,), 1, (0,)), Group((2,), 2, (2, 4)), Group((3,), 1, (3,)))),
    ),
)
HIERARCHIES = st.builds(
    Hierarchy,
    first_split=st.integers(0, 2),
    branches=st.integers(2, 3),
    splits_again=st.booleans(),
    skew=st.floats(0, 1),
    shared=st.floats(0, 0.5),
    assignment=st.integers(0, 100),
)


def network_of(architecture: Architecture, *, normalise: bool = False, sites: Sites | None = None) -> BranchedNetwork:
    """A network whose normalisation matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BranchedNetwork(STAGES, architecture, channels=2, normalise_logits=normalise, sites=sites)
        for name, tensor in (*network.named_buffers(), *network.named_parameters()):
            if "normalise" in name and tensor.dim() == 1:
                nn.init.uniform_(tensor.detach(), 0.5, 2)
    return network.eval()


def images(batch: int) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))


def operations(fused: FusedNetwork, stage: str) -> dict[str, FusedOperation]:
    found = fused.stages[stage]
    assert isinstance(found, FusedStage)
    return dict(found.operations.items())  # type: ignore[arg-type]


@given(
    hierarchy=HIERARCHIES,
    normalise=st.booleans(),
    channels_last=st.booleans(),
    operations=st.sampled_from(get_args(Operations)),
)
@settings(max_examples=30, deadline=None)
def test_it_computes_what_the_trained_network_computes(
    hierarchy: Hierarchy, normalise: bool, channels_last: bool, operations: Operations
) -> None:
    network = network_of(hierarchical(hierarchy, STAGES), normalise=normalise)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        x = images(5).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        with torch.no_grad():
            expected = network.to(dtype)(x)
            assert (network.for_inference(operations=operations)(x) - expected).abs().max() <= bound


def test_equal_branches_are_one_operation_and_copy_nothing() -> None:
    fused = network_of(PARALLEL).for_inference(operations="split")
    assert {name: list(operations(fused, name)) for name in fused.stages} == {
        "conv1": ["0"],
        "conv2": ["0"],  # all groups read the trunk
        "features": ["0_1_2_3"],
        "hidden": ["0_1_2_3"],
        "classes": ["0_2", "1_3"],
    }
    for stage in ("features", "hidden"):
        (operation,) = operations(fused, stage).values()
        assert (operation.groups, operation.reads) == (4, ((0, None),)), "the whole block, no view and no copy"


def test_a_whole_layer_is_one_operation_with_zeros_for_what_is_not_read() -> None:
    fused = network_of(PARALLEL).for_inference(operations="whole")
    for name in fused.stages:
        (operation,) = operations(fused, name).values()
        assert operation.groups == 1
    (hidden,) = operations(fused, "hidden").values()
    assert [(row != 0).nonzero().flatten().tolist() for row in hidden.weight[::2]] == [
        [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11],
    ]  # fmt: skip


def branches(width: int, shared: int) -> Architecture:
    """Two branches in every layer, and nodes of both."""
    groups = (Group((0,), width), Group((1,), width), *([Group((0, 1), shared)] if shared else []))
    last = Layer("classes", (Group((0,), 3, (0, 1, 2)), Group((1,), 3, (3, 4, 5))))
    return Architecture(2, (*(Layer(name, groups) for name in ("conv1", "conv2", "features", "hidden")), last))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(branches(512, 0), ["0_1"]), (branches(6, 12), ["0_1_2"])],
    ids=["wide", "narrow"],
)
def test_layers_are_divided_where_that_is_expected_to_be_faster(
    architecture: Architecture, expected: list[str]
) -> None:
    fused = network_of(architecture).for_inference()
    found = operations(fused, "conv2")
    assert list(found) == expected
    assert found[expected[0]].groups == (2 if architecture.layers[0].width > 512 else 1)


def test_blocks_of_channels_are_filled_up_to_a_multiple_of_sixteen() -> None:
    network = network_of(PARALLEL)
    whole, split = (network.for_inference(operations=form) for form in ("whole", "split"))
    assert [len(operations(whole, name)[key].bias) for name, key in (("conv1", "0"), ("features", "0_1_2_3"))] == [
        16,
        16,
    ]
    assert len(operations(split, "features")["0_1_2_3"].bias) == 16, "four for each group of three"
    assert len(operations(split, "conv2")["0"].bias) == 8, "groups would have to pass over the zeros"
    assert len(operations(whole, "hidden")["0_1_2_3"].bias) == 8, "nodes are not filled up"


def test_a_division_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="operations must be one of fastest, whole, split, got 'slow'"):
        network_of(PARALLEL).for_inference(operations="slow")  # type: ignore[arg-type]


def test_a_stage_keeps_channels_last() -> None:
    fused = network_of(PARALLEL).for_inference()
    block = images(3).contiguous(memory_format=torch.channels_last)
    for name in ("conv1", "conv2"):
        (block,) = fused.stages[name]([block])
        assert block.is_contiguous(memory_format=torch.channels_last)


def test_methods_are_left_out_as_in_eval_mode() -> None:
    sites = Sites(
        nodes=lambda: Dropout(DropoutSettings(0.5)),
        weights=lambda linear: DropConnect(DropConnectSettings(0.5), linear),
    )
    network = network_of(PARALLEL, sites=sites)
    with torch.no_grad():
        torch.testing.assert_close(network.for_inference()(images(4)), network(images(4)), rtol=1e-4, atol=1e-5)


def test_it_is_a_copy_and_cannot_be_trained() -> None:
    network = network_of(dense_of(STAGES)).train()
    fused = network.for_inference()
    before = fused(images(2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(before, fused(images(2)))
    assert network.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("architecture", [PARALLEL, dense_of(STAGES)], ids=["parallel", "dense"])
@pytest.mark.parametrize("operations", ["split", "whole"])
def test_it_is_exported_with_any_batch(architecture: Architecture, operations: Operations) -> None:
    fused = network_of(architecture, normalise=True).for_inference(operations=operations)
    program = torch.export.export(fused, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes a weight in channels_last for a part of something
        torch.export.save(program, saved)
    loaded = torch.export.load(io.BytesIO(saved.getvalue())).module()
    for batch in (1, 7, 33):
        torch.testing.assert_close(loaded(images(batch)), fused(images(batch)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operations", ["split", "whole"])
def test_it_is_traced_whole_by_the_compiler(operations: Operations) -> None:
    fused = network_of(PARALLEL).for_inference(operations=operations)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(3)), fused(images(3)), rtol=1e-5, atol=1e-5)
