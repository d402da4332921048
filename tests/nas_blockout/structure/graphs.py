"""Small graphs of layers for tests: random ones, which often have cycles, and a residual network that is trainable."""

import random
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.architecture import Edge
from nas_blockout.networks import NO_NODE, Branchable, Connection, Nodes
from nas_blockout.structure.wiring import Wiring

Node = tuple[str, int]
Entry = tuple[Node | None, Node]  # of a weight: the node that is read, None for the image, and the one that reads it


def random_wiring(seed: int, *, masked: bool = True) -> Wiring:
    """A graph in which each layer is reached from the image and leads to the classes; some layers are rigid."""
    rng = random.Random(seed)
    names = [*(f"layer{number}" for number in range(rng.randint(0, 5))), "classes"]
    edges: set[Edge] = {(None, names[0]), *((rng.choice(names[:at]), name) for at, name in enumerate(names[1:], 1))}
    edges |= {(name, rng.choice(names[at + 1 :])) for at, name in enumerate(names[:-1])}
    for _ in range(rng.randint(0, 6)):
        edges.add((rng.choice([None, *names]), rng.choice(names)))
    layers = {name: rng.randint(1, 5) for name in names}
    rigid = frozenset(name for name in names if rng.random() < 0.25)
    unmasked = frozenset(edge for edge in edges if edge[0] and not masked and rng.random() < 0.4)
    return Wiring(layers, tuple(sorted(edges, key=str)), rigid, unmasked)


def random_memberships(wiring: Wiring, clusters: int, seed: int) -> dict[str, Tensor]:
    """P of every layer; of some layers nearly all, of others few are above a half."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(width, clusters, generator=generator, dtype=torch.float64) ** rng.choice((0.5, 1.0, 3.0))
        for name, width in wiring.layers.items()
    }


def entries(wiring: Wiring, hard: Mapping[str, Tensor]) -> set[Entry]:
    """The entries of all weights between nodes that share a cluster, and all of those that read the image."""
    found = set[Entry]()
    for source, reader in wiring.edges:
        for target, row in enumerate(hard[reader]):
            if source is None:
                found.add((None, (reader, target)))
                continue
            shared = (
                torch.ones(len(hard[source])) if (source, reader) in wiring.unmasked else (hard[source] & row).any(1)
            )
            found |= {((source, int(read)), (reader, target)) for read in shared.nonzero().flatten()}
    return found


def that_matter(wiring: Wiring, found: set[Entry]) -> set[Entry]:
    """Those entries from whose reader a class, or a node of a rigid layer, is reached."""
    reached = {(name, node) for name in wiring.whole for node in range(wiring.layers[name])}
    while fresh := {source for source, reader in found if source and reader in reached} - reached:
        reached |= fresh
    return {entry for entry in found if entry[1] in reached}


def that_images_reach(found: set[Entry]) -> set[Entry]:
    """Those entries that read the image, or a node that it reaches."""
    reached: set[Node | None] = {None}
    while fresh := {reader for source, reader in found if source in reached} - reached:
        reached |= fresh
    return {entry for entry in found if entry[0] in reached}


class Residual(Branchable):
    """A convolution, residual blocks on a stream, a depthwise convolution on it, and the classes.

    Args:
        width: Nodes of the stream.
        inner: Nodes inside each block.
    """

    def __init__(self, width: int = 6, inner: tuple[int, ...] = (4, 5), classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.normalize = nn.BatchNorm2d(width)
        self.first = nn.ModuleList(nn.Conv2d(width, nodes, 3, padding=1, bias=False) for nodes in inner)
        self.inside = nn.ModuleList(nn.BatchNorm2d(nodes) for nodes in inner)
        self.second = nn.ModuleList(nn.Conv2d(nodes, width, 1, bias=False) for nodes in inner)
        self.last = nn.ModuleList(nn.BatchNorm2d(width) for _ in inner)
        self.alone = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Linear(width, classes)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All weights; the maps have 4 x 4 positions."""
        found = [Connection.of(self, "stem.weight", None, "stream", positions=16)]
        for number in range(len(self.first)):
            name = f"inner{number}"
            found.append(Connection.of(self, f"first.{number}.weight", "stream", name, positions=16))
            found.append(Connection.of(self, f"second.{number}.weight", name, "stream", positions=16))
        found.append(Connection.of(self, "alone.weight", "stream", "stream", positions=16))
        return (*found, Connection.of(self, "head.weight", "stream", "classes"))

    @property
    def scales(self) -> Mapping[str, Nodes]:
        """The scales of normalization."""
        widths = self.layers
        names = {"normalize.weight": "stream"}
        for number in range(len(self.first)):
            names |= {f"inside.{number}.weight": f"inner{number}", f"last.{number}.weight": "stream"}
        return {name: Nodes.whole(layer, widths[layer]) for name, layer in names.items()}

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits of images of 4 x 4 pixels."""
        x = F.relu(self.normalize(self.stem(x)))
        for first, inside, second, last in zip(self.first, self.inside, self.second, self.last, strict=True):
            x = F.relu(x + last(second(F.relu(inside(first(x))))))
        logits: Tensor = self.head(F.relu(self.alone(x)).mean((2, 3)))
        return logits


class Grouped(Branchable):
    """A layer that a grouped convolution reads node by node and a linear layer after it, flattened; one is rigid."""

    def __init__(self, *, rigid: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.head = nn.Linear(6 * 4 + 1, 3)
        self._rigid = {"first": "it is asked for"} if rigid else {}

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Images have 2 x 2 pixels; the head reads every node of the grouped layer at 4 places, and one constant."""
        flat = Nodes((("grouped", 6),), (*(node for node in range(6) for _ in range(4)), NO_NODE))
        return (
            Connection.of(self, "first.weight", None, "first", positions=4),
            Connection.of(self, "grouped.weight", "first", "grouped", positions=4),
            Connection.of(self, "head.weight", flat, "classes"),
        )

    @property
    def rigid(self) -> Mapping[str, str]:
        """The first layer, if that is asked for."""
        return self._rigid
