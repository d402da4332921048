"""Classes of labels, and what each kind of operation does to the nodes that it reads."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.analysis import GraphAnalysis, analyze
from nas_blockout.graph.labels import Forest, first_along, repeated, same_along, unrepeated
from tests.nas_blockout.graph.networks import CLASSES, SHAPE


class TestForest:
    def test_zero_is_no_label(self) -> None:
        forest = Forest()
        labels = forest.fresh(3)
        assert labels.tolist() == [1, 2, 3]
        forest.unite(torch.tensor([0, 1, 0]), labels)
        assert forest.roots().tolist() == [0, 1, 1, 3]

    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30))
    @settings(max_examples=60, deadline=None)
    def test_classes_are_those_of_the_pairs(self, pairs: list[tuple[int, int]]) -> None:
        forest = Forest()
        forest.fresh(12)
        classes = [{label} for label in range(13)]
        for one, other in pairs:
            forest.unite(torch.tensor([one]), torch.tensor([other]))
            if one and other and classes[one] is not classes[other]:
                classes[one] |= classes[other]
                for label in classes[other]:
                    classes[label] = classes[one]
        assert forest.roots().tolist() == [min(each) for each in classes]

    def test_shapes_are_broadcast(self) -> None:
        forest = Forest()
        labels = forest.fresh(6).view(2, 3)
        forest.unite(labels, labels[:, :1])
        assert forest.classes(labels).tolist() == [[1, 1, 1], [4, 4, 4]]

    def test_the_first_reason_stays(self) -> None:
        forest = Forest()
        labels = forest.fresh(4)
        forest.keep_whole(labels[1:3], "first")
        forest.keep_whole(labels, "second")
        forest.unite(labels[2], labels[3])
        assert forest.whole_classes() == {1: "second", 2: "first", 3: "first"}


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_repetition_is_kept_in_memory_alone(shape: list[int], dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, shape, generator=generator)
    labels = first_along(labels, [dim % len(shape)]).contiguous()
    packed = repeated(labels)
    assert torch.equal(packed, labels)
    assert same_along(packed, [dim % len(shape)])
    assert unrepeated(packed).shape[dim % len(shape)] == 1
    for each in range(len(shape)):
        assert (unrepeated(packed).shape[each] == 1) == torch.equal(labels, first_along(labels, [each]))


class Between(nn.Module):
    """Eight channels, what is given, another convolution, and the classes."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        self.more = nn.ModuleDict(modules)
        self.last, self.fc = nn.LazyConv2d(4, 1), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.last(self.function(self, self.first(x)))).mean((2, 3)))
        return logits


def analyzed(function: Callable[["Between", Tensor], Tensor], **modules: nn.Module) -> GraphAnalysis:
    module = Between(function, **modules)
    module(torch.zeros(2, *SHAPE))
    return analyze(module, SHAPE)


pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")


def second(name: str = "second", **arguments: int) -> dict[str, nn.Module]:
    return {name: nn.Conv2d(8, 8, 3, padding=1, **arguments)}


# What is done to the eight channels, and the layers that they make: width and reason.
CASES: dict[
    str, tuple[Callable[[Between, Tensor], Tensor], dict[str, nn.Module], dict[str, tuple[int, str | None]]]
] = {
    "activation": (lambda m, x: F.gelu(x) * 2 + 1, {}, {"first": (8, None)}),
    "gate of its own": (lambda m, x: x * m.more["g"](x).sigmoid(), {"g": nn.Conv2d(8, 8, 1)}, {"first": (8, None)}),
    "one map for all channels": (
        lambda m, x: x * m.more["g"](x).sigmoid(),
        {"g": nn.Conv2d(8, 1, 1)},
        {"first": (8, None), "more.g": (1, "meets all nodes of another layer")},
    ),
    "mean of all channels": (lambda m, x: x * x.mean(1, keepdim=True), {}, {"first": (8, "summed over nodes")}),
    "largest of two": (lambda m, x: torch.max(x, m.more["s"](x)), second("s"), {"first": (8, None)}),
    "softmax over positions": (lambda m, x: x.flatten(2).softmax(-1).view_as(x), {}, {"first": (8, None)}),
    "softmax over channels": (lambda m, x: x.softmax(1), {}, {"first": (8, "softmax over nodes")}),
    "running sum over channels": (lambda m, x: x.cumsum(1), {}, {"first": (8, "cumsum over nodes")}),
    "sorted channels": (lambda m, x: x.sort(1)[0], {}, {"first": (8, "read by sort, an operation without a rule")}),
    "einsum": (lambda m, x: torch.einsum("bchw->bcwh", x), {}, {"first": (8, "read by einsum")}),
    "chosen channels": (lambda m, x: x[:, [5, 1, 1, 0]], {}, {"first": (3, None), "first:2": (5, None)}),
    "reversed channels": (lambda m, x: x.flip(1).roll(2, 1), {}, {"first": (8, None)}),
    "computed places": (
        lambda m, x: x.gather(1, x.argsort(1)),
        {},
        {"first": (8, "read by argsort, an operation without a rule")},
    ),
    "padded by zeros": (lambda m, x: F.pad(x, (1, 1, 1, 1)), {}, {"first": (8, None)}),
    "reflected": (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), {}, {"first": (8, None)}),
    "zero channels": (lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)), {}, {"first": (8, None)}),
    "beside the image": (lambda m, x: torch.cat([x, x.new_ones(x.shape[0], 2, 8, 8)], 1), {}, {"first": (8, None)}),
    "stacked": (lambda m, x: torch.stack([x, m.more["s"](x)]).sum(0), second("s"), {"first": (8, None)}),
    "resized": (lambda m, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0), {}, {"first": (8, None)}),
    "pooled with places": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], {}, {"first": (8, None)}),
    "pooled over channels": (
        lambda m, x: F.avg_pool1d(x.flatten(2).transpose(1, 2), 2).transpose(1, 2).unflatten(2, (8, 8)),
        {},
        {"first": (8, "pooled together with other nodes")},
    ),
    "pixel shuffle": (lambda m, x: F.pixel_shuffle(x, 2), {}, {"first": (2, None)}),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), {}, {"first": (8, None)}),
    "channel shuffle": (lambda m, x: F.channel_shuffle(x, 2), {}, {"first": (8, None)}),
    "gated halves": (lambda m, x: F.glu(x, 1), {}, {"first": (4, None)}),
    "maxout": (lambda m, x: x.unflatten(1, (4, 2)).amax(2), {}, {"first": (8, "summed over nodes")}),
    "prelu": (lambda m, x: m.more["p"](x), {"p": nn.PReLU(8)}, {"first": (8, "PReLU with a slope for each node")}),
    "instance norm": (
        lambda m, x: m.more["n"](x),
        {"n": nn.InstanceNorm2d(8)},
        {"first": (8, "InstanceNorm with a weight for each node")},
    ),
    "layer norm over space": (lambda m, x: F.layer_norm(x, (8, 8)), {}, {"first": (8, None)}),
    "layer norm over all": (lambda m, x: F.layer_norm(x, (8, 8, 8)), {}, {"first": (8, "LayerNorm over nodes")}),
    "depthwise": (lambda m, x: m.more["s"](x), second("s", groups=8), {"first": (8, None)}),
    "depthwise with two outputs": (
        lambda m, x: m.more["d"](x),
        {"d": nn.Conv2d(8, 16, 1, groups=8)},
        {"first": (8, None), "more.d": (8, None)},
    ),
    "transposed": (
        lambda m, x: m.more["t"](x),
        {"t": nn.ConvTranspose2d(8, 5, 2)},
        {"first": (8, "read by a transposed convolution")},
    ),
    "along channels": (
        lambda m, x: x * m.more["e"](x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1),
        {"e": nn.Conv1d(1, 1, 3, padding=1)},
        {"first": (8, "convolution along nodes")},
    ),
    "three dimensions": (
        lambda m, x: m.more["c"](x.unsqueeze(2)).squeeze(2),
        {"c": nn.Conv3d(8, 6, 1)},
        {"first": (8, None), "more.c": (6, None)},
    ),
    "recurrent": (
        lambda m, x: m.more["r"](x.amax(3).transpose(1, 2)[:, :2])[0].transpose(1, 2).unsqueeze(-1),
        {"r": nn.LSTM(8, 5, batch_first=True)},
        {"first": (8, "read by an LSTM")},
    ),
    "computed weight": (
        lambda m, x: F.conv2d(x, m.more["s"].weight * 2),  # type: ignore[operator]
        second("s"),
        {"first": (8, "read by a computed weight")},
    ),
    "weight read elsewhere": (
        lambda m, x: m.more["s"](x) + m.more["s"].weight.sum(),  # type: ignore[operator]
        second("s"),
        {"first": (8, "weight that is read elsewhere too"), "more.s": (8, "weight that is read elsewhere too")},
    ),
    "similarity of positions": (
        lambda m, x: (x.flatten(2) @ (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1)).view_as(x),
        {},
        {"first": (8, "product over nodes")},
    ),
    "mixed with images": (
        lambda m, x: x.reshape(-1, 8, 8).view(8, x.shape[0], 8, 8).transpose(0, 1),
        {},
        {"first": (4, "different nodes at one weight")},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule(case: str) -> None:
    function, modules, expected = CASES[case]
    layers = {layer.name: (layer.width, layer.rigid) for layer in analyzed(function, **modules).layers}
    assert layers == {**expected, "last": (4, None), "classes": (CLASSES, None)}


class Scores(nn.Module):
    """Attention whose keys and values are those of `shared` heads."""

    def __init__(self, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        self.query, self.key, self.value = nn.Linear(8, 4 * heads), nn.Linear(8, 4 * shared), nn.Linear(8, 4 * shared)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        query = self.query(x).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        key, value = (each(x).unflatten(-1, (self.shared, 4)).transpose(1, 2) for each in (self.key, self.value))
        found = F.scaled_dot_product_attention(query, key, value, enable_gqa=self.shared < self.heads)
        return found.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (8, 8))


class TestAttention:
    def layers(self, heads: int, shared: int) -> dict[str, tuple[int, str | None]]:
        found = analyzed(lambda m, x: m.more["a"](x), a=Scores(heads, shared)).layers
        return {layer.name: (layer.width, layer.rigid) for layer in found if layer.name.startswith("more")}

    def test_a_head_is_a_node(self) -> None:
        assert self.layers(4, 4) == {"more.a.query": (4, None)}

    def test_heads_that_are_counted_together_with_images(self) -> None:
        """As torch's own module does when it returns its weights: heads and images are one dim there."""

        class Weighted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(2).transpose(1, 2)
                found: Tensor = self.attention(x, x, x)[0]
                return found.transpose(1, 2).unflatten(2, (8, 8))

        analysis = analyzed(lambda m, x: m.more["a"](x), a=Weighted())
        assert analysis.rigid == {}
        assert {layer.name: layer.width for layer in analysis.layers[:3]} == {
            "first": 8,
            "more.a.attention": 4,
            "more.a.attention.out_proj": 8,
        }

    def test_heads_that_share_keys_are_one_node(self) -> None:
        assert self.layers(4, 2) == {"more.a.query": (2, None)}

    def test_keys_of_all_heads_stay(self) -> None:
        assert self.layers(4, 1) == {
            "more.a.query": (4, None),
            "more.a.key": (4, "shared by all attention heads"),
            "more.a.value": (4, "shared by all attention heads"),
        }

    def test_one_head_is_kept_whole_but_for_its_values(self) -> None:
        assert self.layers(1, 1) == {
            "more.a.query": (4, "product over nodes"),
            "more.a.key": (4, "product over nodes"),
            "more.a.value": (4, None),
        }
