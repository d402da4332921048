"""What is traced computes the same as the network; what cannot be traced is refused in one sentence."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nas_blockout.graph.analysis import analyze
from nas_blockout.graph.operations import name_of, written
from nas_blockout.graph.trace import Trace, Untraceable, trace
from nas_blockout.graph.training import AttentionDropout, BatchStatistics, Dropout, DropPath
from tests.fixtures import networks
from tests.nas_blockout.graph.networks import CLASSES, NETWORKS, SHAPE, Mobile, Transformer, analysis_of


def small(
    forward: Callable[[Any, Tensor], Tensor], *, channels: int = 8, base: type[nn.Module] = nn.Module
) -> nn.Module:
    """A convolution, what is given, and a linear layer over the mean of each channel."""

    class Small(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, channels, 3, padding=1), nn.Linear(channels, CLASSES)
            self.register_buffer("seen", torch.zeros(channels))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(forward(self, self.conv(x)).mean((2, 3)))
            return logits

    return Small()


def computed(traced: Trace, module: nn.Module, images: Tensor) -> Tensor:
    """What the graph makes of images."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    class Interpreter(fx.Interpreter):
        def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
            node = next(each for each in traced.graph.nodes if each.op == "placeholder" and each.target == target)
            if node is traced.image:
                return images
            return state[traced.parameter_of[node]] if node in traced.parameter_of else traced.constants[node]

    result: Any = Interpreter(fx.GraphModule(nn.Module(), traced.graph)).run()
    with torch.no_grad():
        return torch.as_tensor(result[0])


def randomized(module: nn.Module) -> nn.Module:
    """The network with statistics and biases that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.is_floating_point() and (value.dim() == 1 or not value.any()):
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise + 0.5 if "var" in name else noise)
    return module


def spread(logits: Tensor) -> float:
    return float(logits.detach().std(0).max())


def refusal(module: nn.Module) -> str:
    with pytest.raises(Untraceable) as caught:
        trace(module, SHAPE)
    return str(caught.value)


class Shortcut(nn.Module):
    """The image itself is changed in place before it is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.relu(y, inplace=True)
        logits: Tensor = self.fc((z.mul_(2) + y).mean((2, 3)))
        return logits


def window_mask(module: Any, x: Tensor) -> Tensor:
    """A constant that is written in parts, as the masks of shifted windows are."""
    mask = x.new_zeros((8, 8))
    mask[:4, 2:] = 1.0
    mask[-2:] += 2.0
    return x * mask


def dead(module: Any, x: Tensor) -> Tensor:
    torch.sigmoid(x).sum()
    return x


MORE: dict[str, Callable[[], nn.Module]] = {
    "in place": Shortcut,
    "window mask": lambda: small(window_mask),
    "unread": lambda: small(dead),
    "gate": lambda: small(lambda module, x: F.glu(torch.cat([x, x.cos()], 1), 1)),
}


@cache
def traced_network(name: str) -> tuple[nn.Module, Trace]:
    torch.manual_seed(0)
    module = randomized((NETWORKS | MORE)[name]())
    return module, analysis_of(name).trace if name in NETWORKS else trace(module, SHAPE)


@pytest.mark.parametrize("name", [*NETWORKS, *MORE])
def test_the_graph_computes_what_the_network_does_in_evaluation(name: str) -> None:
    module, traced = traced_network(name)
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module.eval()(images)
    assert spread(expected) > 1e-4
    torch.testing.assert_close(computed(traced, module, images), expected)
    assert not [node for node in traced.graph.nodes if node.op == "call_function" and written(node) is not None]
    assert all(node.users or node is traced.image or node.op == "output" for node in traced.graph.nodes)


def test_tracing_leaves_the_network_and_torch_as_they_were() -> None:
    module = Mobile().train()
    module.norm0.eval()
    module.norm1.momentum = None
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    torch.backends.mha.set_fastpath_enabled(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(module, SHAPE)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [each.training for each in (module, module.norm0, module.norm1)] == [True, False, True]
    assert module.norm1.momentum is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_attention_is_told_apart_while_its_fast_path_is_off() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    traced = trace(Transformer(lambda: layer), SHAPE)
    names = {name_of(node) for node in traced.graph.nodes if node.op == "call_function"}
    assert "scaled_dot_product_attention" in names
    assert "_transformer_encoder_layer_fwd" not in names


class TestTraining:
    def test_batch_norm_dropout_and_stochastic_depth_are_found(self) -> None:
        found = list(traced_network("mobile")[1].training.values())
        assert found.count(BatchStatistics(0.1)) == 4
        assert [each for each in found if not isinstance(each, BatchStatistics)] == [DropPath(0.2, True, True)]
        assert Dropout(0.3) in traced_network("residual")[1].training.values()
        assert AttentionDropout(0.1) in traced_network("attention-module")[1].training.values()

    def test_stochastic_depth_stands_where_its_value_was(self) -> None:
        _, traced = traced_network("mobile")
        (node,) = (node for node, does in traced.training.items() if isinstance(does, DropPath))
        assert name_of(node) == "alias"
        assert name_of(node.args[0]) == "batch_norm"  # type: ignore[arg-type]
        assert [name_of(user) for user in node.users] == ["add"]

    @pytest.mark.parametrize(("mode", "per_image"), [("row", True), ("batch", False)])
    def test_torchvisions_stochastic_depth(self, mode: str, per_image: bool) -> None:
        from nas_blockout.lazy_torchvision import torchvision

        depth = torchvision.ops.StochasticDepth(0.25, mode)
        traced = trace(small(lambda module, x: x + depth(x) if module.training else x + x), SHAPE)
        assert list(traced.training.values()) == [DropPath(0.25, per_image, True)]

    def test_a_cumulative_average_is_kept(self) -> None:
        module = Mobile()
        module.norm1.momentum = None
        found = [does for does in trace(module, SHAPE).training.values() if isinstance(does, BatchStatistics)]
        assert sorted(found, key=str) == sorted([BatchStatistics(0.1)] * 3 + [BatchStatistics(None)], key=str)

    def test_a_batch_norm_without_running_statistics_is_the_same_in_training(self) -> None:
        module = Mobile()
        module.norm0 = nn.BatchNorm2d(6, track_running_stats=False)
        traced = trace(module, SHAPE)
        assert list(traced.training.values()).count(BatchStatistics(0.1)) == 3

    def test_attention_weights_are_dropped_where_evaluation_has_no_dropout_at_all(self) -> None:
        attention = nn.MultiheadAttention(12, 3, dropout=0.1, batch_first=True)

        class Weighted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = attention

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = self.attention(x, x, x, need_weights=True)[0]
                return result

        assert list(trace(Transformer(Weighted), SHAPE).training.values()) == [Dropout(0.1)]


def noisy(module: Any, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) if module.training else x


def other_in_training(module: Any, x: Tensor) -> Tensor:
    return x.sigmoid() if module.training else x.tanh()


def always_dropping(module: Any, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True)


def branching(module: Any, x: Tensor) -> Tensor:
    if x.mean() > 0:
        return x * 2
    return x


def fixed_batch(module: Any, x: Tensor) -> Tensor:
    return x.view(2, 8, 8, 8)


def without_gradients(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


def partly_written(module: Any, x: Tensor) -> Tensor:
    x[:, :2] = 0
    return x


def written_through_a_view(module: Any, x: Tensor) -> Tensor:
    x.flatten(2).relu_()
    return x


def counting(module: Any, x: Tensor) -> Tensor:
    module.seen.add_(x.detach().mean((0, 2, 3)))
    return x


def broken(module: Any, x: Tensor) -> Tensor:
    return x @ torch.zeros(5, 5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("forward", "told"),
        [
            (noisy, ["same in training as in evaluation", "randn_like", "in training only"]),
            (other_in_training, ["same in training as in evaluation", "sigmoid", "in training only"]),
            (always_dropping, ["same in training as in evaluation", "dropout"]),
            (branching, ["decides by the values of its input", "`if x.mean() > 0:`", "torch.where"]),
            (fixed_batch, ["fixed number of images", "x.shape[0]"]),
            (without_gradients, ["one plain graph", "torch.no_grad()"]),
            (partly_written, ["write into a part of a tensor", "torch.where"]),
            (written_through_a_view, ["write into a part of a tensor", "relu_"]),
            (counting, ["buffers alone", "'seen'"]),
            (broken, ["cannot be exported for images of shape (3, 8, 8)", "`return x @ torch.zeros(5, 5)`"]),
        ],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_what_a_graph_cannot_hold(self, forward: Any, told: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        message = refusal(small(forward))
        assert all(part in message for part in told), message
        assert "\n" not in message
        # The export knows no line of a wrong number of images; of calls it knows that in a module's forward.
        assert forward is fixed_batch or f"{__file__}:" in message
        assert capfd.readouterr() == ("", "")

    def test_the_line_of_a_branch_is_told(self) -> None:
        assert f"at {__file__}:{branching.__code__.co_firstlineno + 1}, `if x.mean() > 0:`" in refusal(small(branching))

    def test_several_inputs(self) -> None:
        class Two(nn.Module):
            def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
                return images

        assert "takes several: images, boxes" in refusal(Two())

    def test_several_outputs_in_training_only(self) -> None:
        class Auxiliary(Mobile):
            def forward(self, x: Tensor) -> Any:
                return (super().forward(x), x) if self.training else super().forward(x)

        message = refusal(Auxiliary())
        assert "in training it returns 2 values" in message
        assert "aux_logits=False" in message

    def test_maps_as_outputs(self) -> None:
        assert "it returns shape (images, 4, 8, 8)" in refusal(nn.Conv2d(3, 4, 3, padding=1))

    def test_quantized_modules(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that its quantized tensors will go
            quantized = torch.ao.nn.quantized.Linear(192, CLASSES)
        module = nn.Sequential(nn.Flatten(), quantized, nn.Linear(CLASSES, CLASSES))
        assert "must not be quantized: '1' is a Linear" in refusal(module)

    def test_weights_that_are_no_plain_tensors(self) -> None:
        class Odd(Tensor):
            pass

        module = nn.Linear(192, CLASSES)
        module.register_buffer("odd", torch.zeros(2).as_subclass(Odd))
        assert "must be plain tensors, not quantized or distributed ones: 'odd' is a Odd" in refusal(module)

    def test_scripted_modules(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that TorchScript is no longer developed
            module = torch.jit.script(nn.Linear(192, CLASSES))
        assert "'the network' is compiled by TorchScript" in refusal(module)

    def test_lazy_modules(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lazy modules are said to be new
            module = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
        assert "'1.weight' has no shape yet" in refusal(module)

    def test_nothing_to_learn(self) -> None:
        assert "has no parameters" in refusal(nn.Flatten())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Summed", r"the 10 outputs of this one are made by sum at .*networks\.py:\d+, which is no such layer"),
        ("NormedClasses", r"the weight of the last one of this network, linear at .*, is computed\. Remove its"),
        (
            "Distances",
            r"calls torch\.cdist at .*networks\.py:\d+, which torch exports for a fixed number of images",
        ),
        ("TwoInputs", r"TwoInputs\.forward at .*networks\.py:\d+ takes several: x, mask\. Wrap it"),
    ],
)
def test_the_operation_that_is_in_its_place_is_named_with_its_line(name: str, told: str) -> None:
    with pytest.raises(Untraceable, match=told):
        analyze(getattr(networks, name)(), (1, 8, 8))
