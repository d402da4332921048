"""Which layers of nodes read which, as clean-up and distillation follow them: a chain, or any graph."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nas_blockout.architecture import Edge
from nas_blockout.networks import Branchable, Connection


@dataclass(frozen=True, slots=True)
class Wiring:
    """Layers of nodes, and which of them read which.

    The graph may have cycles: a residual stream is written by layers that read it.

    Args:
        layers: Names and widths in the order in which the layers are first written, the classes last.
        edges: Pairs of a layer that is read, or None for the image or what else has no memberships, and of its reader.
        rigid: Layers whose nodes all stay.
        unmasked: Those of the edges along which every node is read by every node, whatever their clusters.

    Raises:
        ValueError: An edge names no layer, no edges lead from the image to a layer, or an unmasked edge is none of the
            edges.
    """

    layers: Mapping[str, int]
    edges: tuple[Edge, ...]
    rigid: frozenset[str] = frozenset()
    unmasked: frozenset[Edge] = frozenset()

    def __post_init__(self) -> None:
        known = {None, *self.layers}
        if wrong := [edge for edge in self.edges if not known.issuperset(edge)]:
            raise ValueError(f"an edge must connect layers of {list(self.layers)}, or None to one, got {wrong[0]}")
        if strange := self.unmasked - set(self.edges):
            raise ValueError(f"unmasked must be some of the edges, got {sorted(strange, key=str)[0]}")
        reached, readers = list(self.read_images), self.readers()
        for name in reached:  # which grows
            reached += [reader for reader in readers[name] if reader not in reached]
        if missing := [name for name in self.layers if name not in reached]:
            raise ValueError(f"no edges lead from the image to layer {missing[0]!r}: give those of what it reads")

    @classmethod
    def chain(cls, layers: Mapping[str, int]) -> "Wiring":
        """Return the wiring of layers of which each reads the one before, and the first one what is not masked."""
        return cls(layers, _chain(layers))

    @classmethod
    def of(cls, network: Branchable, masked: Iterable[Connection] | None = None) -> "Wiring":
        """Return the wiring of a network.

        Args:
            network: Its layers, edges and rigid layers.
            masked: Those of its weights that are masked; None for all between layers.
        """
        edges, unmasked = network.edges, frozenset[Edge]()
        if masked is not None:
            weights = {connection.weight for connection in masked}
            others = [connection for connection in network.connections if connection.weight not in weights]
            pairs = {(source, target) for each in others for source in each.sources for target in each.targets}
            unmasked = frozenset(edge for edge in edges if edge in pairs)
        return cls(dict(network.layers), edges, frozenset(network.rigid), unmasked)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, the classes last."""
        return tuple(self.layers)

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before and nothing else, masked, and no layer is rigid."""
        return not (self.rigid or self.unmasked) and set(self.edges) == set(_chain(self.layers))

    @property
    def whole(self) -> frozenset[str]:
        """Layers whose nodes all stay: the rigid ones and the classes."""
        return self.rigid | {self.names[-1]}

    @property
    def read_images(self) -> frozenset[str]:
        """Layers that read the image, or what else has no memberships."""
        return frozenset(reader for source, reader in self.edges if source is None)

    def sources(self) -> dict[str, list[str]]:
        """Return, for every layer, the layers that it reads, without the image."""
        found: dict[str, list[str]] = {name: [] for name in self.layers}
        for source, reader in self.edges:
            if source is not None:
                found[reader].append(source)
        return found

    def readers(self) -> dict[str, list[str]]:
        """Return, for every layer, the layers that read it."""
        found: dict[str, list[str]] = {name: [] for name in self.layers}
        for source, reader in self.edges:
            if source is not None:
                found[source].append(reader)
        return found

    def distances(self) -> dict[str, int]:
        """Return the fewest edges from every layer to the classes, nearest first; without layers that lead nowhere."""
        sources, front = self.sources(), [self.names[-1]]
        found = {front[0]: 0}
        for name in front:  # which grows
            fresh = [source for source in sources[name] if source not in found]
            found.update(dict.fromkeys(fresh, found[name] + 1))
            front += dict.fromkeys(fresh)
        return found


def _chain(names: Iterable[str]) -> tuple[Edge, ...]:
    first, *_ = names
    return ((None, first), *pairwise(names))


def extra_clusters(wiring: Wiring) -> list[frozenset[str]]:
    """Return sets of layers, each to be put into one more cluster, that stand for the unmasked edges.

    Both layers of an unmasked edge are in a common one, and those of a masked edge in none: then two nodes share a
    cluster exactly where one reads the other.

    Returns:
        As few sets as a first fit finds: one where the masked layers are the last ones of a network.

    Raises:
        ValueError: Two layers read each other, one of them under masks and the other without; or a layer that reads
            itself under masks reads or is read without.
    """
    apart: dict[str, set[str]] = {name: set() for name in wiring.layers}  # who may not meet in one
    for source, reader in wiring.edges:
        if source is not None and (source, reader) not in wiring.unmasked:
            apart[source].add(reader)
            apart[reader].add(source)
    together: list[set[str]] = []
    for source, reader in wiring.edges:
        if source is None or (source, reader) not in wiring.unmasked:
            continue
        if reader in apart[source] or source in apart[source] or reader in apart[reader]:
            raise ValueError(
                f"layer {reader!r} reads {source!r} without masks, but one of them reads itself or the other under "
                "masks, which no architecture can say: mask all of these weights or none"
            )
        avoided = apart[source] | apart[reader]
        found = next((each for each in together if not avoided & each), None)
        if found is None:
            together.append({source, reader})
        else:
            found |= {source, reader}
    return [frozenset(each) for each in together]


def completed(values: Mapping[str, Tensor], wiring: Wiring) -> dict[str, Tensor]:
    """Return memberships, or their probabilities, of all layers: in the learned clusters and in extra ones.

    Args:
        values: By layer, shape ``(nodes, clusters)``; layers may be missing that no masked weight touches.
        wiring: All layers; its unmasked edges need extra clusters, to which all nodes of their layers belong.

    Returns:
        By layer in the order of the wiring, shape ``(nodes, clusters + extra clusters)``.
    """
    extra, example = extra_clusters(wiring), next(iter(values.values()))
    found = {}
    for name, width in wiring.layers.items():
        value = values[name] if name in values else example.new_zeros(width, example.shape[1])
        columns = [torch.full_like(value[:, :1], name in layers) for layers in extra]
        found[name] = torch.cat([value, *columns], 1) if extra else value
    return found
