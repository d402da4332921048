"""Operations that multiply and accumulate, but whose weights do not lie between layers of nodes: they have no masks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nas_blockout.graph.labels import Labelling
from nas_blockout.graph.operations import module_of, name_of

_BY_NODE = "has no weight between two nodes; it costs less where whole nodes are removed"


@dataclass(frozen=True, slots=True)
class UnmaskedOperation:
    """A product that no mask makes smaller, such as a recurrent layer, or a convolution with a computed weight.

    Args:
        operation: What it is called, and in which module it is.
        weights: Names of the parameters that it multiplies by, of matrices or larger; none of an attention.
        macs: Multiply-accumulates an image.
        reason: Why it is not masked.
    """

    operation: str
    weights: tuple[str, ...]
    macs: int
    reason: str


def unmasked_operations(labelling: Labelling) -> tuple[UnmaskedOperation, ...]:
    """Return the operations of a graph that cost something and are no connection, those that are alike as one."""
    found: dict[tuple[str, tuple[str, ...], str], int] = {}
    for node in _unmasked(labelling):
        module = module_of(node)
        operation = f"{name_of(node)} in {module}" if module else name_of(node)
        key = (operation, _weights(labelling, node), _reason(labelling, node))
        found[key] = found.get(key, 0) + labelling.macs[node]
    return tuple(
        UnmaskedOperation(operation, weights, macs, reason) for (operation, weights, reason), macs in found.items()
    )


def macs_of_nodes(labelling: Labelling, number_of: Tensor, nodes: int) -> Tensor:
    """Return what each node takes of these operations as long as it is there, shape ``(nodes + 1,)``.

    An attention costs each of its heads the same. Entry 0 has what no node's removal saves.

    Args:
        labelling: Of the graph, run for one image.
        number_of: The number of the node of each label.
        nodes: How many there are.
    """
    total = torch.zeros(nodes + 1, dtype=torch.float64)
    for node in _unmasked(labelling):
        labels = labelling.labels[node]
        numbers = (
            number_of[labels].flatten() if isinstance(labels, Tensor) and labels.numel() else torch.zeros(1).long()
        )
        share = labelling.macs[node] / len(numbers)
        total.index_add_(0, numbers, torch.full((len(numbers),), share, dtype=torch.float64))
    return total


def _unmasked(labelling: Labelling) -> Iterable[fx.Node]:
    for node, macs in labelling.macs.items():
        use = labelling.uses.get(node)
        if macs and (use is None or not bool(use.targets.any())):
            yield node


def _reason(labelling: Labelling, node: fx.Node) -> str:
    if node in labelling.uses:
        return "filters the image channel by channel"
    if labelling.constant[node]:
        return "is computed from weights alone"
    labels = labelling.labels[node]
    if node in labelling.unmasked or not isinstance(labels, Tensor) or not bool(labels.any()):
        return labelling.unmasked.get(node, "is a product that is neither a linear layer nor a convolution")
    return _BY_NODE


def _weights(labelling: Labelling, node: fx.Node) -> tuple[str, ...]:
    """Return the parameters that a product is computed from without the image, in the order of their use."""
    names: dict[str, int] = {}
    waiting = list(reversed(node.all_input_nodes))
    while waiting:
        each = waiting.pop()
        if not labelling.constant[each]:
            continue
        if each in labelling.trace.parameter_of:
            names[labelling.trace.parameter_of[each]] = labelling.values[each].dim()
        waiting += reversed(each.all_input_nodes)
    return tuple(name for name, dim in names.items() if dim > 1) or tuple(names)


def by_layer(macs: Tensor, widths: Mapping[str, int]) -> dict[str | None, Tensor]:
    """Return `macs_of_nodes` by the name of the layer; under None what always stays, shape ``(1,)``."""
    parts = macs.split([1, *widths.values()])
    named: dict[str | None, Tensor] = {
        name: part for name, part in zip(widths, parts[1:], strict=True) if bool(part.any())
    }
    return {None: parts[0], **named}
