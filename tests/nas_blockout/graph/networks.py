"""Small networks of different kinds for the tests of graphs, each for images of `SHAPE` and ten classes."""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.analysis import GraphAnalysis, analyze

SHAPE = (3, 8, 8)
CLASSES = 10


class Residual(nn.Module):
    """A strided block with a projection, a padded shortcut, batch norm after biases, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 10, 3, 1, 1, bias=False), nn.BatchNorm2d(10)
        self.project = nn.Conv2d(6, 10, 1, 2)
        self.conv3 = nn.Conv2d(10, 14, 3, 2, 1)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(14 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.project(x))
        x = F.relu(self.conv3(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        logits: Tensor = self.fc(self.drop(x.flatten(1)))
        return logits


class Dense(nn.Module):
    """Every convolution reads the concatenation of all before it, after a batch norm over it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * number) for number in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * number, 4, 3, padding=1) for number in range(3))
        self.fc = nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        logits: Tensor = self.fc(torch.cat(parts, 1).mean((2, 3)))
        return logits


class Shuffle(nn.Module):
    """Half of the channels bypass a convolution, and all are shuffled, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv in self.convs:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, F.relu(conv(right))], 1)
            x = x.view(x.shape[0], 2, 6, *x.shape[2:]).transpose(1, 2).contiguous().view(x.shape)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class DropPath(nn.Module):
    """Stochastic depth, as in timm and torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8)
        return x * noise.div_(0.8)


class Mobile(nn.Module):
    """An inverted residual with a depthwise convolution, a squeeze-and-excitation gate and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.norm1 = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise, self.norm2 = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project, self.norm3 = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.path, self.fc = DropPath(), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm0(self.stem(x)))
        y = F.hardswish(self.norm2(self.depthwise(F.hardswish(self.norm1(self.expand(x))))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.path(self.norm3(self.project(y)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Gated(nn.Module):
    """A gated linear unit: one convolution makes values and gates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(8 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, 1)
        logits: Tensor = self.fc((value * gate.sigmoid()).flatten(1))
        return logits


class Grouped(nn.Module):
    """A bottleneck with a convolution in groups, as in ResNeXt."""

    def __init__(self, groups: int = 6) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.reduce, self.norm1 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.conv, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=groups), nn.BatchNorm2d(12)
        self.expand, self.fc = nn.Conv2d(12, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.stem(x)))
        y = F.relu(self.norm2(self.conv(F.relu(self.norm1(self.reduce(x))))))
        logits: Tensor = self.fc(F.relu(x + self.expand(y)).amax((2, 3)))
        return logits


class _Block(nn.Module):
    """A transformer's block before its norms; subclasses say how queries, keys and values are made."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 16), nn.Linear(16, width)

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        result: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return result


class FusedBlock(_Block):
    """One linear layer makes queries, keys and values; positions have a bias for each head."""

    def __init__(self, width: int = 12, heads: int = 3, tokens: int = 5) -> None:
        super().__init__(width, heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens))

    def attend(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1) + self.bias
        result: Tensor = self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(images, tokens, width))
        return result


class ApartBlock(_Block):
    """Three linear layers make queries, keys and values."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__(width, heads)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def attend(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.heads, -1)
        query, key, value = (each(x).view(shape).transpose(1, 2) for each in (self.query, self.key, self.value))
        result: Tensor = self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return result


class ModuleBlock(_Block):
    """Attention is torch's own module."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__(width, heads)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)

    def attend(self, x: Tensor) -> Tensor:
        result: Tensor = self.proj(self.attention(x, x, x, need_weights=False)[0])
        return result


class Transformer(nn.Module):
    """Patches as tokens, a token for the class, one block, LayerNorm over the stream."""

    def __init__(self, block: Callable[[], nn.Module] = FusedBlock) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.block, self.norm, self.fc = block(), nn.LayerNorm(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        logits: Tensor = self.fc(self.norm(self.block(x))[:, 0])
        return logits


class Flat(nn.Module):
    """Four positions of every channel are read one by one by linear layers, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc1, self.drop, self.fc2 = nn.Linear(8 * 4, 12), nn.Dropout(), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(self.drop(F.relu(self.fc1(x.flatten(1)))))
        return logits


class Shared(nn.Module):
    """One convolution is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.fc = nn.Conv2d(8, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.conv(F.relu(self.stem(x))))))
        logits: Tensor = self.fc(F.relu(self.last(x)).mean((2, 3)))
        return logits


class Alias(nn.Module):
    """A ReLU in place whose result is not used by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        F.relu_(x)
        logits: Tensor = self.fc((x + 1).mean((2, 3)))
        return logits


class PixelShuffle(nn.Module):
    """Channels become positions, four to one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.conv2(F.pixel_shuffle(self.conv1(x), 2))).mean((2, 3)))
        return logits


class TokenMixer(nn.Module):
    """A linear layer over positions: channels pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mix, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(64, 64), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.mix(x.flatten(2)).view(x.shape)
        logits: Tensor = self.fc(F.relu(self.conv2(x)).mean((2, 3)))
        return logits


class Sequence1d(nn.Module):
    """Rows of the image as a sequence, with one-dimensional convolutions and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv1d(24, 10, 3, padding=1), nn.BatchNorm1d(10), nn.Conv1d(10, 6, 3)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.conv1(x.flatten(1, 2)))), 2)
        logits: Tensor = self.fc(F.relu(self.conv2(x)).mean(2))
        return logits


class GroupNormed(nn.Module):
    """GroupNorm keeps what it reads whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.conv2, self.conv3 = nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2(F.silu(self.norm(self.conv1(x)))))
        logits: Tensor = self.fc(F.silu(self.conv3(x)).amax((2, 3)))
        return logits


class Padded(nn.Module):
    """Convolutions with biases and padding, without batch norm, after nodes that may be constant."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(inputs, 8, 3, padding=1) for inputs in (3, 8, 8))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "dense": Dense,
    "shuffle": Shuffle,
    "mobile": Mobile,
    "gated": Gated,
    "grouped": Grouped,
    "few-groups": lambda: Grouped(groups=3),
    "fused-attention": lambda: Transformer(FusedBlock),
    "attention-apart": lambda: Transformer(ApartBlock),
    "attention-module": lambda: Transformer(ModuleBlock),
    "flat": Flat,
    "shared": Shared,
    "alias": Alias,
    "pixel-shuffle": PixelShuffle,
    "token-mixer": TokenMixer,
    "sequence": Sequence1d,
    "group-norm": GroupNormed,
    "padded": Padded,
}


@cache
def analysis_of(name: str) -> GraphAnalysis:
    """The analysis of one of the networks: that of every instance, since it holds no weights."""
    return analyze(NETWORKS[name](), SHAPE)
