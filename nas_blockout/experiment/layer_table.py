"""What can be masked and branched in a network, as a table: its layers of nodes, what they cost, what stays whole."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nas_blockout.experiment.branchable import analysis_of
from nas_blockout.experiment.builder import notes_of
from nas_blockout.experiment.config import Experiment
from nas_blockout.graph.analysis import GraphAnalysis
from nas_blockout.graph.unmasked import UnmaskedOperation
from nas_blockout.networks import Connection
from nas_blockout.serialization import count_of

_MOST_WHOLE = 4  # layers that stay whole, in a summary


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of nodes.

    Args:
        layer: Its name, as ``masked`` of the method blockout takes it.
        nodes: Its width.
        producers: Weights that make its nodes.
        readers: Weights that read them.
        macs: Multiply-accumulates an image of the weights that make it.
        maskable_share: Share of these that lies between two nodes, in [0, 1]; what reads the image does not.
        rigid: Why it is kept whole and in its order; None where its nodes can be removed and separated.
    """

    layer: str
    nodes: int
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    macs: int
    maskable_share: float
    rigid: str | None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The layers of nodes of a network.

    Args:
        image: Channels, height and width of an image.
        classes: Number of classes.
        layers: In the order in which they are first made, the classes last.
        macs: Multiply-accumulates an image of all weights and products.
        maskable_share: Share of these that lies between two nodes, in [0, 1].
        unmasked: Operations that cost something, but have no weight between layers of nodes.
        graph_hash: Hash of the network's operations, their shapes and the names of its weights.
        notes: What was changed in the network that a factory made, one sentence each.
    """

    image: tuple[int, int, int]
    classes: int
    layers: tuple[LayerRow, ...]
    macs: int
    maskable_share: float
    unmasked: tuple[UnmaskedOperation, ...]
    graph_hash: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain JSON types."""
        return asdict(self)

    def summary(self) -> Iterator[str]:
        """Yield the table in a few lines: how much of it can be masked, and what stays whole."""
        whole = [row for row in self.layers if row.rigid is not None]
        count = f"{len(whole)} layers stay" if len(whole) > 1 else "1 layer stays" if whole else "no layer stays"
        layers = f"{count_of(len(self.layers), 'layer')} of nodes"
        yield (
            f"{layers}; {self.maskable_share:.1%} of {self.macs:,} MACs are between nodes and can be masked; "
            f"{count} whole"
        )
        if self.unmasked:
            costly = sorted(self.unmasked, key=lambda each: -each.macs)
            names = ", ".join(each.operation for each in costly[:_MOST_WHOLE])
            more = f" and {len(costly) - _MOST_WHOLE} more" if len(costly) > _MOST_WHOLE else ""
            share = sum(each.macs for each in costly) / self.macs
            yield f"{share:.1%} of the MACs are not maskable: {names}{more}; `nas-blockout inspect` says why"
        for row in whole[:_MOST_WHOLE]:
            yield f"{row.layer} ({count_of(row.nodes, 'node')}) stays whole: {row.rigid}"
        if len(whole) > _MOST_WHOLE:
            more = count_of(len(whole) - _MOST_WHOLE, "more layer stays", "more layers stay")
            yield f"{more} whole; `nas-blockout inspect` lists all of them"


def layer_table(backbone: Any, shape: tuple[int, int, int], classes: int) -> LayerTable:
    """Return the layers of nodes of the network of a backbone.

    Args:
        backbone: Settings of a registered backbone.
        shape: Channels, height and width of an image.
        classes: Number of classes.

    Raises:
        Conflict: A factory makes the network, and it is refused.
        Untraceable: The network has no graph that can be analyzed; the message says why, where, and what to do.
    """
    notes = notes_of(Experiment(backbone=backbone), shape=shape, classes=classes)
    return _table(analysis_of(backbone, shape, classes), shape, notes)


def _table(analysis: GraphAnalysis, shape: tuple[int, int, int], notes: tuple[str, ...]) -> LayerTable:
    macs = {layer.name: 0 for layer in analysis.layers}
    maskable = dict(macs)
    for connection in analysis.connections:
        for layer, cost, between in _costs(connection):
            macs[layer] += cost
            maskable[layer] += between
    rows = tuple(
        LayerRow(
            layer.name,
            layer.width,
            layer.writers,
            layer.readers,
            macs[layer.name],
            maskable[layer.name] / macs[layer.name] if macs[layer.name] else 0.0,
            layer.rigid,
        )
        for layer in analysis.layers
    )
    total = sum(math.prod(each.shape) * each.positions for each in analysis.connections)
    total += sum(each.macs for each in analysis.unmasked)
    return LayerTable(
        shape,
        analysis.classes,
        rows,
        total,
        sum(maskable.values()) / total if total else 0.0,
        analysis.unmasked,
        analysis.graph_hash,
        notes,
    )


def _costs(connection: Connection) -> Iterator[tuple[str, int, int]]:
    """Yield for each output of a weight that is a node's: its layer, its cost, and the part that reads nodes."""
    window = math.prod(connection.shape[2:]) * connection.positions
    sources = connection.source_nodes.identities if connection.source_nodes is not None else ()
    read = len(sources) // connection.groups
    nodes_of_group = [
        sum(identity is not None for identity in sources[group * read : (group + 1) * read])
        for group in range(connection.groups)
    ]
    outputs = connection.target_nodes.count // connection.groups
    for position, identity in enumerate(connection.target_nodes.identities):
        if identity is not None:
            yield identity[0], connection.shape[1] * window, nodes_of_group[position // outputs] * window
