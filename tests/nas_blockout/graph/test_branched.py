"""What a branched graph is as a network: names, values, copies, architecture, exports."""

import copy
import io
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.graph.analysis import analyze
from nas_blockout.graph.branched import branch
from nas_blockout.networks import Network
from tests.nas_blockout.graph.masked_networks import Masked, analyzed, dense_enough, images, masked
from tests.nas_blockout.graph.networks import CLASSES, NETWORKS, SHAPE

EXPORTED = ["residual", "shuffle", "fused-attention"]


def dense_case(name: str, *, clusters: int = 2, seed: int = 0) -> Masked:
    _, analysis = analyzed(name)
    return masked(name, dense_enough(analysis, clusters=clusters, seed=seed))


def test_it_is_a_network_whose_parameters_have_the_paths_of_the_original_ones() -> None:
    case = dense_case("residual")
    assert isinstance(case.branched, Network)
    names = [name for name, _ in case.branched.named_parameters()]
    assert "body.conv1.bundles.0.weight" in names
    assert "body.norm1.weight" in names
    paths = {name.partition(".")[0] for name, _ in case.network.named_parameters()}
    assert {name.split(".")[1] for name in names} == paths


@pytest.mark.parametrize("images_at_a_time", [1, 2, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_images_is_taken(name: str, images_at_a_time: int) -> None:
    case = dense_case(name)
    batch = images(images_at_a_time)
    with torch.no_grad():
        torch.testing.assert_close(case.branched(batch), case.logits(batch), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_computes_the_same_and_shares_nothing(name: str) -> None:
    branched, batch = dense_case(name).branched, images(3)
    twin = copy.deepcopy(branched)
    before = branched(batch).detach()
    assert torch.equal(twin(batch), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(branched(batch), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_its_state_is_saved_and_loaded(name: str) -> None:
    _, analysis = analyzed(name)
    memberships, batch = dense_enough(analysis), images(3)
    case = masked(name, memberships)
    other = branch(analysis, memberships, {key: torch.zeros_like(value) for key, value in case.state.items()}).eval()
    file = io.BytesIO()
    torch.save(case.branched.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(batch), case.branched(batch))


def test_it_shares_no_memory_with_the_state_that_it_is_made_of() -> None:
    case = dense_case("mobile")
    owned = {value.untyped_storage().data_ptr() for value in case.state.values()}
    assert not owned & {value.untyped_storage().data_ptr() for value in case.branched.state_dict().values()}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_changes_its_dtype(name: str) -> None:
    branched = dense_case(name).branched
    expected = branched(images(3)).detach()
    actual = branched.float()(images(3).float()).detach()
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_draws_nothing_in_eval(name: str) -> None:
    branched = dense_case(name).branched
    before = torch.get_rng_state()
    branched(images(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_nodes_are_those_with_a_cluster_or_in_a_rigid_layer(name: str) -> None:
    _, analysis = analyzed(name)
    memberships = dense_enough(analysis, seed=1)
    for layer in analysis.layers[:-1]:
        memberships[layer.name][0] = 0
    branched = masked(name, memberships).branched
    for layer in analysis.layers:
        groups = branched.nodes[layer.name]
        nodes = sorted(node for group in groups for node in group)
        stays = layer.rigid is not None or layer.name == "classes"
        assert nodes == [node for node in range(layer.width) if stays or bool(memberships[layer.name][node].any())]
        for group in groups:
            assert len({tuple(memberships[layer.name][node].tolist()) for node in group}) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_architecture_of_one_cluster_is_dense(name: str) -> None:
    _, analysis = analyzed(name)
    memberships = {layer.name: torch.ones(layer.width, 1) for layer in analysis.layers}
    branched = masked(name, memberships).branched
    architecture = branched.architecture
    assert architecture.is_dense
    assert architecture.classes == CLASSES
    assert {layer.name for layer in architecture.layers if layer.rigid} == set(analysis.rigid)
    assert Architecture.from_json(architecture.to_json()) == architecture
    total = sum(each.positions * torch.Size(each.shape).numel() for each in analysis.connections)
    assert branched.macs() == total
    assert branched.constant_count == 0


def test_a_layer_that_is_left_out_belongs_to_every_cluster() -> None:
    network, analysis = analyzed("residual")
    memberships = dense_enough(analysis)
    ones = {**memberships, "stem": torch.ones_like(memberships["stem"])}
    del memberships["stem"]
    state = network.state_dict()
    with torch.no_grad():
        expected = branch(analysis, ones, state).eval()(images(2))
        assert torch.equal(branch(analysis, memberships, state).eval()(images(2)), expected)


def test_a_layer_of_which_nothing_is_left_has_a_placeholder_in_the_architecture() -> None:
    _, analysis = analyzed("padded")
    memberships = dense_enough(analysis)
    memberships["convs.1"] = torch.zeros_like(memberships["convs.1"])
    branched = masked("padded", memberships).branched
    assert branched.nodes["convs.1"] == ()
    layers = {layer.name: layer for layer in branched.architecture.layers}
    assert [group.constant for group in layers["convs.1"].groups] == [True]
    assert all(group.constant for group in layers["convs.2"].groups)
    assert float(branched(images(4)).detach().std(0).max()) < 1e-12  # the same for every image


class Ramp(nn.Module):
    """Adds to its channels a constant in the precision of the images, as attention masks are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).mean((2, 3)) + torch.linspace(0, 1, 6, dtype=x.dtype))
        return logits


@pytest.mark.parametrize("traced", [torch.float32, torch.float64])
def test_constants_have_the_precision_of_the_state_whatever_the_one_that_was_traced(traced: torch.dtype) -> None:
    network = Ramp().to(traced)
    analysis = analyze(network, SHAPE)
    other = torch.float64 if traced == torch.float32 else torch.float32
    network.to(other)
    memberships = {layer.name: torch.ones(layer.width, 1) for layer in analysis.layers}
    branched = branch(analysis, memberships, network.state_dict())
    batch = images(3).to(other)
    assert branched(batch).dtype == other
    torch.testing.assert_close(branched(batch), network(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPORTED)
def test_it_is_exported_with_a_dynamic_batch(name: str) -> None:
    branched = dense_case(name).branched
    program = torch.export.export(branched, (images(2),), dynamic_shapes=({0: torch.export.Dim("images", max=64)},))
    for number in (1, 2, 5):
        torch.testing.assert_close(program.module()(images(number)), branched(images(number)), rtol=0, atol=1e-12)


@pytest.mark.slow(20)
@pytest.mark.filterwarnings("ignore::Warning")  # torch's exporter warns of its own future
@pytest.mark.parametrize("name", EXPORTED)
def test_onnxruntime_computes_the_same(name: str, tmp_path: Path) -> None:
    branched = dense_case(name).branched.float()
    program = torch.export.export(
        branched, (images(2).float(),), dynamic_shapes=({0: torch.export.Dim("images", max=64)},)
    )
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    exported.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for number in (1, 2, 5):
        batch = images(number).float()
        (actual,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), branched(batch).detach(), rtol=1e-4, atol=1e-5)


def test_a_convolution_of_one_bundle_is_called_without_a_copy() -> None:
    _, analysis = analyzed("padded")
    branched = masked("padded", {layer.name: torch.ones(layer.width, 2) for layer in analysis.layers}).branched
    calls = [node.target for node in branched.body.graph.nodes if node.op == "call_function"]
    assert torch.cat not in calls
    assert torch.index_select not in calls
    assert all(module.reads_all for module in branched.modules() if hasattr(module, "reads_all"))
    assert sum(isinstance(module, nn.Conv2d) for module in branched.modules()) == 0
