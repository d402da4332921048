"""Stages of a network that is a graph of layers: what a fixed hierarchy decides on at once, not layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas_blockout.architecture import Edge
from nas_blockout.networks import Branchable
from nas_blockout.structure.folding import by_module

_FEW = 3  # stages by resolution or by module, below which another division is looked for


@dataclass(frozen=True, slots=True)
class StagedGraph:
    """The layers of a network, divided into stages.

    Args:
        layers: Names and widths of all layers in order, the classes last.
        edges: Which layer reads which, None for the image.
        rigid: Layers that stay whole.
        stages: Layers of each stage, from the image on; every layer but the classes is in one.
    """

    layers: Mapping[str, int]
    edges: tuple[Edge, ...]
    rigid: frozenset[str]
    stages: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, network: Branchable) -> "StagedGraph":
        """Return the layers of a network, divided where the resolution of its maps falls for good.

        A layer has the resolution at which it is written or read, whichever is more. A network with fewer than three
        such stages, as a transformer, is divided by the modules that hold its layers.
        """
        layers, edges = dict(network.layers), network.edges
        hidden = list(layers)[:-1]
        positions = dict.fromkeys(layers, 1)
        for connection in network.connections:
            for target in connection.targets:
                positions[target] = max(positions[target], connection.positions)
        read_at = dict(positions)
        for connection in network.connections:
            # Of a stream that gains channels where the resolution falls, the nodes from before are written further on.
            smallest = min(positions[target] for target in connection.targets)
            for source in connection.sources:
                read_at[source] = max(read_at[source], smallest)
        keys: list[object] = _from_each_on([read_at[name] for name in hidden])
        if len(set(keys)) < _FEW:
            keys = list(by_module(hidden, few=_FEW))
        stages: dict[object, list[str]] = {}
        for name, key in zip(hidden, keys, strict=True):
            stages.setdefault(key, []).append(name)
        return cls(layers, edges, frozenset(network.rigid), tuple(map(tuple, stages.values())))

    def splits(self, least: int) -> dict[int, int]:
        """Return the stages from which on a network can branch, with the nodes of the widest layer to divide there.

        Branches are apart only where a layer that is divided reads another one; the classes always are. In a
        transformer, whose stream is rigid and lies between all others, they would be so in name alone.

        Args:
            least: Nodes that a layer must have to be divided.
        """
        able = [
            {name for name in stage if name not in self.rigid and self.layers[name] >= least} for stage in self.stages
        ]
        found, divided = dict[int, int](), {list(self.layers)[-1]}
        for position in reversed(range(len(able))):
            divided |= able[position]
            apart = any(source in divided and reader in divided for source, reader in self.edges)
            if able[position] and apart:
                found[position] = max(self.layers[name] for name in able[position])
        return dict(sorted(found.items()))


def _from_each_on(positions: Sequence[int]) -> list[object]:
    """Return for each layer the most positions of it and of all after it.

    Layers that look at a map as a whole, to weigh its channels, have one position in the middle of a stage.
    """
    found, most = list[object](), 0
    for count in reversed(positions):
        most = max(most, count)
        found.append(most)
    return found[::-1]
