"""Sets of nodes of one value as the bits of an integer: many of them are compared while forms are chosen."""

from collections.abc import Iterable
from functools import lru_cache

_KEPT = 2**14


def set_of(nodes: Iterable[int]) -> int:
    """Return the set of some nodes."""
    digits = bytearray()
    for node in nodes:
        byte, bit = divmod(node, 8)
        if byte >= len(digits):
            digits.extend(bytes(byte + 1 - len(digits)))
        digits[byte] |= 1 << bit
    return int.from_bytes(digits, "little")


def first(count: int) -> int:
    """Return the set of the nodes from 0 to before `count`."""
    return (1 << count) - 1


@lru_cache(_KEPT)
def members(nodes: int) -> tuple[int, ...]:
    """Return the nodes of a set, ascending."""
    found = []
    for byte, digits in enumerate(nodes.to_bytes((nodes.bit_length() + 7) // 8, "little")):
        if digits:
            found += [8 * byte + bit for bit in range(8) if digits >> bit & 1]
    return tuple(found)


@lru_cache(_KEPT)
def places_in(part: int, block: int) -> tuple[int, ...]:
    """Return where the nodes of a part stand in a block that holds its nodes in ascending order."""
    wanted = set(members(part))
    return tuple(place for place, node in enumerate(members(block)) if node in wanted)


@lru_cache(_KEPT)
def runs_in(part: int, block: int) -> tuple[tuple[int, int], ...]:
    """Return where a part stands in a block, as ranges ``(first, after the last)`` of consecutive places."""
    runs: list[list[int]] = []
    for place in places_in(part, block):
        if runs and runs[-1][1] == place:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])
    return tuple((start, stop) for start, stop in runs)


@lru_cache(_KEPT)
def spread(nodes: int, times: int) -> int:
    """Return the set of the positions of some nodes of which each has as many, one node after the other."""
    return set_of(node * times + position for node in members(nodes) for position in range(times))
