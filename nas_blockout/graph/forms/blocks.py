"""Values of a branched graph in blocks of nodes, and what is read of them in one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import fx

_KEPT = 2**10


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Nodes of a value that stand together in memory, ascending.

    Args:
        nodes: As a set.
        handle: Computes them.
        fill: Places after the nodes that no node has, whose values nothing may depend on.
    """

    nodes: int
    handle: fx.Node | None
    fill: int = 0

    @property
    def width(self) -> int:
        """Places in memory."""
        return self.nodes.bit_count() + self.fill


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """Blocks that together are the nodes of a value along a dim, each node once."""

    node: fx.Node
    dim: int
    blocks: tuple[Block, ...]


ReadKey = tuple[fx.Node, int, int, bool]  # value, dim, nodes, and whether they stand in order with nothing beside them


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Nodes of a value in one tensor: in which order, -1 for none, and whether they are a view of a larger one."""

    handle: fx.Node | None
    order: tuple[int, ...]
    is_view: bool = False


@lru_cache(_KEPT)
def order_of(made: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return where the rows that were made stand in ascending order, -1 left out, and in how many runs."""
    order = tuple(place for _, place in sorted((row, place) for place, row in enumerate(made) if row >= 0))
    return order, len(runs_of(order))


def runs_of(places: Sequence[int]) -> list[int]:
    """Return where runs of consecutive places begin."""
    return [place for number, place in enumerate(places) if not number or places[number - 1] != place - 1]
