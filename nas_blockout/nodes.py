"""What the positions of one side of a weight are: nodes of layers, several times or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

NO_NODE = -1


@dataclass(frozen=True)
class Nodes:
    """What the positions of one side of a weight are: the nodes of one or more layers.

    Args:
        layers: Names and widths of the layers, each 1 or more nodes wide.
        positions: The node at each position, as its number in the layers put one after the other; `NO_NODE` where the
            value is no node's, as a channel of the image. None for every node once, in order.

    Raises:
        ValueError: There is no layer, a name is empty or occurs twice, or a position lies outside the layers.
    """

    layers: tuple[tuple[str, int], ...]
    positions: tuple[int, ...] | None = None
    # No cached properties, whose locks a compiled training step cannot take.
    are_all: bool = field(init=False, repr=False, compare=False)
    """Whether every position is some node's."""
    _indices: dict[torch.device, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        names, total = [name for name, _ in self.layers], sum(width for _, width in self.layers)
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"layers must be different names with their widths, got {self.layers}")
        if any(width < 1 for _, width in self.layers):
            raise ValueError(f"a layer must be at least one node wide, got {self.layers}")
        if self.positions is not None and not all(NO_NODE <= node < total for node in self.positions):
            raise ValueError(
                f"positions of the layers {', '.join(names)} must lie in 0..{total - 1}, or be {NO_NODE} for none, "
                f"got {min(self.positions)} to {max(self.positions)}"
            )
        object.__setattr__(self, "are_all", self.positions is None or min(self.positions) > NO_NODE)

    @classmethod
    def whole(cls, layer: str, width: int) -> "Nodes":
        """Return all nodes of one layer, in order."""
        return cls(((layer, width),))

    @classmethod
    def slice(cls, layer: str, width: int, start: int, stop: int | None = None) -> "Nodes":
        """Return the nodes of a layer from `start` to before `stop`, by default to its end.

        Raises:
            ValueError: The slice is empty or leaves the layer.
        """
        end = width if stop is None else stop
        if not 0 <= start < end <= width:
            raise ValueError(
                f"a slice of layer {layer!r} must hold nodes and lie in 0..{width}, got start={start} and stop={stop}"
            )
        return cls(((layer, width),), tuple(range(start, end)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(name for name, _ in self.layers)

    @property
    def count(self) -> int:
        """Number of positions, 1 or more."""
        return sum(width for _, width in self.layers) if self.positions is None else len(self.positions)

    @cached_property
    def identities(self) -> tuple[tuple[str, int] | None, ...]:
        """The layer and the number in it of the node at each position; None where there is none."""
        nodes = [(name, number) for name, width in self.layers for number in range(width)]
        positions = range(len(nodes)) if self.positions is None else self.positions
        return tuple(nodes[node] if node != NO_NODE else None for node in positions)

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return one row for each position; of a whole layer the tensor itself, zeros where there is no node.

        Args:
            values: By layer, one row for each of its nodes, such as memberships, shape ``(width, ...)``.
        """
        rows = [values[name] for name in self.names]
        joined = rows[0] if len(rows) == 1 else torch.cat(rows)
        if self.positions is None:
            return joined
        if not self.are_all:  # the last row stands for no node: NO_NODE is -1
            joined = torch.cat([joined, joined.new_zeros(1, *joined.shape[1:])])
        return joined.index_select(0, self._index(joined.device, len(joined)))

    def sums(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return for each layer the sum of the values at each node's positions, zero for a node that has none.

        Args:
            values: One for each position, or one row, shape ``(count, ...)``.
        """
        total = sum(width for _, width in self.layers)
        if self.positions is not None:  # one row more takes the values that are no node's
            index = self._index(values.device, total + 1)
            values = values.new_zeros(total + 1, *values.shape[1:]).index_add_(0, index, values)[:total]
        found: tuple[Tensor, ...] = values.split([width for _, width in self.layers])
        return found

    def _index(self, device: torch.device, rows: int) -> Tensor:
        """Return the row of each position, made once for each device."""
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.positions, device=device) % rows
        return self._indices[device]
