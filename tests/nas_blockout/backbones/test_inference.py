"""The form that is run: exact, without copies where none is needed, and exportable."""

import io
import warnings
from itertools import product
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Sites
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.inference import NUMBERS_AT_ONCE, FusedNetwork, FusedStage, FusedSum, FusedTerm
from nas_blockout.backbones.inference_cost import Operations, Runtime
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from search_spaces.branched import Hierarchy, hierarchical

SHAPE, CLASSES = (2, 8, 8), 6
Reads = tuple[tuple[int, tuple[int, int] | None], ...]
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


def network_of(architecture: Architecture, *, normalize: bool = False, sites: Sites | None = None) -> BranchedNetwork:
    """A network whose normalization matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BranchedNetwork(STAGES, architecture, channels=2, normalize_logits=normalize, sites=sites)
        for name, tensor in (*network.named_buffers(), *network.named_parameters()):
            if "normalize" in name and tensor.dim() == 1:
                nn.init.uniform_(tensor.detach(), 0.5, 2)
    return network.eval()


def images(batch: int) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))


def operations(fused: FusedNetwork, stage: str) -> dict[str, list[FusedTerm]]:
    found = fused.stages[stage]
    assert isinstance(found, FusedStage)
    return {name: list(each.terms) if isinstance(each, FusedSum) else [each] for name, each in found.operations.items()}


def terms(operation: list[FusedTerm]) -> list[tuple[int, Reads]]:
    """The groups of each term, and what it reads: blocks, and which part of them."""
    return [(term.groups, term.reads) for term in operation]


def width(operation: list[FusedTerm]) -> int:
    return len(operation[0].weight)


@given(
    hierarchy=HIERARCHIES,
    normalize=st.booleans(),
    channels_last=st.booleans(),
    operations=st.sampled_from(get_args(Operations)),
)
@settings(max_examples=30, deadline=None)
def test_it_computes_what_the_trained_network_computes(
    hierarchy: Hierarchy, normalize: bool, channels_last: bool, operations: Operations
) -> None:
    network = network_of(hierarchical(hierarchy, STAGES), normalize=normalize)
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
        "conv2": ["0_1_2_3"],  # all groups read the trunk
        "features": ["0_1_2_3"],
        "hidden": ["0_1_2_3"],
        "classes": ["0_2", "1_3"],
    }
    for stage in ("features", "hidden"):
        (operation,) = operations(fused, stage).values()
        assert terms(operation) == [(4, ((0, None),))], "the whole block, no view and no copy"


def shared_by_four(*, width: int = 3, shared: int = 5) -> Architecture:
    """Four branches from the first layer on, and nodes that all of them read."""
    groups = (*(Group((b,), width) for b in range(4)), Group((0, 1, 2, 3), shared))
    return Architecture(
        4, (*(Layer(name, groups) for name in ("conv1", "conv2", "features", "hidden")), PARALLEL.layers[-1])
    )


def test_a_summed_layer_is_two_blocks_of_what_each_reads_of_either() -> None:
    fused = network_of(shared_by_four()).for_inference(operations="summed")
    for stage in ("conv2", "features", "hidden"):
        own, shared = operations(fused, stage).values()
        assert terms(own) == [(4, ((0, None),)), (1, ((1, None),))], "whole blocks, no view and no copy"
        assert terms(shared) == [(1, ((0, None),)), (1, ((1, None),))]
        assert [each.bias is None for each in own] == [False, True], "what is added once is not added again"
    assert list(operations(fused, "conv1")) == ["0_1_2_3", "4"]


@pytest.mark.parametrize("skewed", [False, True], ids=["equal", "unequal"])
def test_every_form_of_a_layer_with_shared_nodes_computes_the_same(skewed: bool) -> None:
    widths = (1, 4, 2, 3) if skewed else (3, 3, 3, 3)
    groups = (*(Group((b,), width) for b, width in enumerate(widths)), Group((0, 1), 2), Group((0, 1, 2, 3), 5))
    names = ("conv1", "conv2", "features", "hidden")
    network = network_of(Architecture(4, (*(Layer(name, groups) for name in names), PARALLEL.layers[-1]))).double()
    x = images(5).double()
    with torch.no_grad():
        expected = network(x)
        for form in get_args(Operations):
            assert (network.for_inference(operations=form)(x) - expected).abs().max() <= 1e-10


def test_one_network_may_be_divided_differently_for_onnxruntime() -> None:
    plan = stages(ConvNetSettings((64, 128, 256), (512,)), (3, 32, 32), CLASSES)
    layers = [
        Layer(
            stage.name, (*(Group((b,), stage.width * 3 // 16) for b in range(4)), Group((0, 1, 2, 3), stage.width // 4))
        )
        for stage in plan[:-1]
    ]
    architecture = Architecture(4, (*layers, PARALLEL.layers[-1]))
    network = BranchedNetwork(plan, architecture, channels=3).eval().double()
    for_torch, for_onnx = (network.for_inference(runtime=runtime) for runtime in get_args(Runtime))
    assert [list(operations(for_torch, name)) for name in for_torch.stages] != [
        list(operations(for_onnx, name)) for name in for_onnx.stages
    ]
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (for_onnx(x) - network(x)).abs().max() <= 1e-10
        assert (for_torch(x) - network(x)).abs().max() <= 1e-10


def test_it_is_divided_for_the_number_of_images_that_is_expected_and_takes_any() -> None:
    groups = (*(Group((b,), 64) for b in range(2)), Group((0, 1), 64))
    last = Layer("classes", (Group((0,), 3, (0, 1, 2)), Group((1,), 3, (3, 4, 5))))
    network = network_of(Architecture(2, (*(Layer(stage.name, groups) for stage in STAGES[:-1]), last))).double()
    divided = {batch: network.for_inference(batch=batch) for batch in (None, 1, 256)}
    assert list(operations(divided[1], "features")) != list(operations(divided[256], "features"))
    for fused, batch in product(divided.values(), (1, 9)):
        x = images(batch).double()
        with torch.no_grad():
            assert (fused(x) - network(x)).abs().max() <= 1e-10


def test_a_whole_layer_is_one_operation_with_zeros_for_what_is_not_read() -> None:
    fused = network_of(PARALLEL).for_inference(operations="whole")
    for name in fused.stages:
        (operation,) = operations(fused, name).values()
        assert terms(operation) == [(1, ((0, None),))]
    (hidden,) = operations(fused, "hidden").values()
    assert [(row != 0).nonzero().flatten().tolist() for row in hidden[0].weight[::2]] == [
        [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11],
    ]  # fmt: skip


def branches(width: int, shared: int) -> Architecture:
    """Two branches in every layer, and nodes of both."""
    groups = (Group((0,), width), Group((1,), width), *([Group((0, 1), shared)] if shared else []))
    last = Layer("classes", (Group((0,), 3, (0, 1, 2)), Group((1,), 3, (3, 4, 5))))
    return Architecture(2, (*(Layer(name, groups) for name in ("conv1", "conv2", "features", "hidden")), last))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(branches(512, 0), "0_1"), (branches(6, 12), "0_1_2")],
    ids=["wide", "narrow"],
)
def test_layers_are_divided_where_that_is_expected_to_be_faster(architecture: Architecture, expected: str) -> None:
    fused = network_of(architecture).for_inference()
    found = operations(fused, "conv2")
    assert sorted("_".join(found).split("_")) == expected.split("_")
    assert len(found) == 1
    assert terms(found.popitem()[1])[0][0] == (2 if architecture.layers[0].width > 512 else 1)


def test_blocks_of_channels_are_filled_up_to_a_multiple_of_sixteen() -> None:
    network = network_of(PARALLEL)
    whole, split = (network.for_inference(operations=form) for form in ("whole", "split"))
    assert [width(operations(whole, name)[key]) for name, key in (("conv1", "0"), ("features", "0_1_2_3"))] == [16, 16]
    assert width(operations(split, "features")["0_1_2_3"]) == 16, "four for each group of three"
    assert width(operations(split, "conv2")["0_1_2_3"]) == 8, "groups would have to pass over the zeros"
    assert width(operations(whole, "hidden")["0_1_2_3"]) == 8, "nodes are not filled up"


def test_one_dense_operation_makes_the_classes_in_their_order() -> None:
    network = network_of(PARALLEL)
    assert network.class_order is not None
    whole, split = (network.for_inference(operations=form) for form in ("whole", "split"))
    assert (whole.class_order is None, split.class_order is None) == (True, False)


@pytest.mark.parametrize("form", get_args(Operations))
@pytest.mark.parametrize("normalize", [False, True])
def test_zeros_after_the_last_class_are_no_classes(form: Operations, normalize: bool) -> None:
    dense = [Layer(name, (Group((0, 1), width),)) for name, width in (("conv2", 8), ("features", 12))]
    halves = Layer("hidden", (Group((0,), 4), Group((1,), 4)))
    uneven = Layer("classes", (Group((0,), 4, (0, 1, 2, 3)), Group((1,), 2, (4, 5))))
    network = network_of(Architecture(2, (*dense, halves, uneven)), normalize=normalize)
    with torch.no_grad():
        torch.testing.assert_close(network.for_inference(operations=form)(images(3)), network(images(3)))


def test_a_division_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="operations must be one of fastest, whole, split, summed, got 'slow'"):
        network_of(PARALLEL).for_inference(operations="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runtime must be one of torch, onnxruntime, got 'slow'"):
        network_of(PARALLEL).for_inference(runtime="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch must be at least 1, or None for one image as well as many, got 0"):
        network_of(PARALLEL).for_inference(batch=0)


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


def test_many_images_pass_some_at_a_time_and_all_at_once_where_it_is_compiled() -> None:
    fused = network_of(PARALLEL, normalize=True).for_inference()
    assert fused.images_at_once == NUMBERS_AT_ONCE // (8 * 8 * 16), "the first layer, filled up, is the largest"
    expected, passed = fused(images(8)), list[int]()
    fused.images_at_once = 3
    handle = fused.stages["conv1"].register_forward_hook(lambda _, blocks, __: passed.append(len(blocks[0][0])))
    torch.testing.assert_close(fused(images(8)), expected, rtol=1e-5, atol=1e-5)
    assert passed == [3, 3, 2]
    handle.remove()
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(8)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operations", ["split", "whole", "summed"])
@pytest.mark.parametrize("kind", ["parallel", "shared", "dense"])
def test_it_is_exported_with_any_batch(kind: str, operations: Operations) -> None:
    architecture = {"parallel": PARALLEL, "shared": shared_by_four(), "dense": dense_of(STAGES)}[kind]
    fused = network_of(architecture, normalize=True).for_inference(operations=operations)
    program = torch.export.export(fused, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes a weight in channels_last for a part of something
        torch.export.save(program, saved)
    loaded = torch.export.load(io.BytesIO(saved.getvalue())).module()
    for batch in (1, 7, 33):
        torch.testing.assert_close(loaded(images(batch)), fused(images(batch)), rtol=1e-5, atol=1e-5)


def test_a_summed_layer_runs_in_onnxruntime_with_its_sum_inside_the_convolution(tmp_path: Path) -> None:
    fused = network_of(shared_by_four(width=4, shared=16)).for_inference(operations="summed")
    example = images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(fused, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        exported = torch.onnx.export(program, (example,), dynamo=True, verbose=False, input_names=["images"])
    assert exported is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "run.onnx")
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString(), options)
    for batch in (1, 7):
        (logits,) = session.run(None, {"images": images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), fused(images(batch)), rtol=1e-4, atol=1e-5)
    written, run = (
        [node.op_type for node in model.graph.node]
        for model in (exported.model_proto, onnx.load(tmp_path / "run.onnx"))
    )
    assert written.count("Add") - run.count("Add") >= 4, "the sums of convolutions are a part of these"
    assert run.count("Conv") + run.count("FusedConv") == written.count("Conv") == 2 + 2 * 4


@pytest.mark.parametrize("operations", ["split", "whole", "summed"])
def test_it_is_traced_whole_by_the_compiler(operations: Operations) -> None:
    fused = network_of(shared_by_four()).for_inference(operations=operations)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images(3)), fused(images(3)), rtol=1e-5, atol=1e-5)
