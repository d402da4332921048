"""The ways in which one weighted operation can be divided, and the modules that run the parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.graph.forms.folded_operations import Filters, Folded
from nas_blockout.graph.forms.node_sets import members
from nas_blockout.graph.rewrite.bundles import CONVOLUTIONS, Call

_MOST_MERGED = 48  # parts that are merged one by one
_MOST_TERMS = 8  # that are weighed: more take long to export, and hardly ever less time to run
_LEFT_OUT = -1
_KEPT = 2**12


@dataclass(frozen=True, slots=True)
class Term:
    """One convolution or product that is run: it makes some rows of a layer.

    Args:
        rows: For each of its groups the rows, as a set.
        reads: For each of its groups what these read, as a set of places.
    """

    rows: tuple[int, ...]
    reads: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Number of groups, 1 for a dense operation."""
        return len(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """Rows that each group makes and places that it reads, filled up to the largest."""
        return max(rows.bit_count() for rows in self.rows), max(reads.bit_count() for reads in self.reads)

    def made(self) -> tuple[int, ...]:
        """Return the rows in the order in which they are made, groups filled up with -1 to the largest."""
        return _filled(self.rows)

    def read(self) -> tuple[int, ...]:
        """Return the places in the order in which they are read, groups filled up with -1 to the largest."""
        return _filled(self.reads)


Form = tuple[Term, ...]
Division = Literal["fastest", "whole", "split", "grouped"]


class FusedTerm(nn.Module):
    """A convolution or linear operation with normalization folded in.

    Args:
        call: The operation.
        weight: Shape ``(rows, inputs of a group)`` and the window.
        bias: Shape ``(rows,)``; None for zeros.
        groups: Of the convolution.
    """

    def __init__(self, call: Call, weight: Tensor, bias: Tensor | None, groups: int) -> None:
        super().__init__()
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.function: Callable[..., Tensor] = CONVOLUTIONS[call.window] if call.window else F.linear
        self.arguments = (*call.options, groups) if call.window else ()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows, without the activation."""
        return self.function(x, self.weight, self.bias, *self.arguments)


class FusedNorm(nn.Module):
    """A batch norm of some nodes that no operation before it can take in.

    Args:
        factors: Shape ``(nodes,)``.
        shifts: Shape ``(nodes,)``.
        rank: Dims of what it normalizes along dim 1.
    """

    def __init__(self, factors: Tensor, shifts: Tensor, rank: int) -> None:
        super().__init__()
        shape = (-1, *(1,) * (rank - 2))
        self.factors = nn.Parameter(factors.reshape(shape), requires_grad=False)
        self.shifts = nn.Parameter(shifts.reshape(shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized nodes."""
        return torch.addcmul(self.shifts, x, self.factors)


@torch.no_grad()
def fused_term(operation: Folded, term: Term, made: Sequence[int], reads: Sequence[int]) -> FusedTerm:
    """Return the module of a term.

    Args:
        operation: That the term is a part of.
        term: Which rows of it.
        made: Rows in the order in which they are made, -1 for zeros; those of groups one after the other.
        reads: Places in the order in which they come, -1 for what is not read; likewise.
    """
    share, height = len(reads) // term.groups, len(made) // term.groups
    weights = [
        operation.weight(made[group * height : (group + 1) * height], reads[group * share : (group + 1) * share])
        for group in range(term.groups)
    ]
    return FusedTerm(operation.call, torch.cat(weights), operation.bias_of(made), term.groups)


@torch.no_grad()
def fused_filters(operation: Filters, nodes: Sequence[int]) -> FusedTerm:
    """Return the module that filters some nodes, each alone."""
    index = torch.tensor(nodes)
    there, index = index >= 0, index.clamp(min=0)
    bias = None if operation.bias is None else torch.where(there, operation.bias[index], 0)
    weight = operation.weight[index] * there.view(-1, *(1,) * (operation.weight.dim() - 1))
    return FusedTerm(operation.call, weight, bias, len(index))


def form_of(operation: Folded, division: Literal["whole", "split", "grouped"]) -> Form:
    """Return one way to divide an operation, whatever time it takes.

    Args:
        operation: What is divided; some row of it reads something.
        division: ``whole``, ``split``, or ``grouped`` for what reads no place in common as groups of one convolution;
            a linear operation is split then.
    """
    split = _with_constants(operation)
    if division == "whole":
        return (_term(_merged(split)),)
    apart = _components(split)
    if division == "split" or not operation.call.window or len(apart) == 1:
        return tuple(_term(part) for part in split)
    return (_grouped(apart),)


def forms_of(operation: Folded, time: Callable[[Term], float]) -> tuple[Form, ...]:
    """Return the ways to divide an operation, without repeats, the whole first.

    Whole, as one dense operation with zeros; split, with one for all rows that read the same; every stage between
    them, in which those have been merged that together take least more time than apart; and what reads no place in
    common as the groups of one convolution, filled up to the largest.

    Args:
        operation: What is divided; some row of it reads something.
        time: Expected time of a term.
    """
    split = _with_constants(operation)
    whole = _merged(split)
    apart = _components(split)
    forms: list[Form] = [(_term(whole),)]
    if len(apart) > 1:
        forms.append(tuple(_term(part) for part in apart))
        if operation.call.window:
            forms.append((_grouped(apart),))
    merged = split if len(split) <= _MOST_MERGED else apart
    if len(merged) <= _MOST_MERGED:
        forms += _stages(merged, time)
    return tuple(dict.fromkeys(form for form in forms if len(form) <= _MOST_TERMS))


_Part = tuple[int, int]  # rows and reads


def _term(part: _Part) -> Term:
    return Term((part[0],), (part[1],))


def _grouped(parts: Sequence[_Part]) -> Term:
    return Term(tuple(part[0] for part in parts), tuple(part[1] for part in parts))


def _with_constants(operation: Folded) -> list[_Part]:
    """Return the bundles; the smallest one also makes the rows that read nothing, as rows of zeros."""
    parts = [(bundle.rows, bundle.reads) for bundle in operation.bundles]
    if operation.constants:
        smallest = min(range(len(parts)), key=lambda number: parts[number][1].bit_count())
        parts[smallest] = (parts[smallest][0] | operation.constants, parts[smallest][1])
    return parts


def _merged(parts: Sequence[_Part]) -> _Part:
    rows = reads = 0
    for part in parts:
        rows, reads = rows | part[0], reads | part[1]
    return rows, reads


def _components(parts: Sequence[_Part]) -> list[_Part]:
    """Return the parts, with those merged that read a place in common."""
    found: list[_Part] = []
    for part in parts:
        meeting = [other for other in found if other[1] & part[1]]
        found = [*(other for other in found if not other[1] & part[1]), _merged([part, *meeting])]
    return sorted(found, key=lambda part: part[0] & -part[0])  # in the order of their first rows


def _stages(split: Sequence[_Part], time: Callable[[Term], float]) -> list[Form]:
    """Return the division into the given parts, and those after each merge of the two that cost least to merge."""
    parts = dict(enumerate(split))
    taken = {number: time(_term(part)) for number, part in parts.items()}
    added: dict[tuple[int, int], float] = {}

    def compare(one: int) -> None:
        for other in parts:
            if other != one:
                both = time(_term(_merged([parts[one], parts[other]])))
                added[min(one, other), max(one, other)] = both - taken[one] - taken[other]

    for number in parts:
        compare(number)
    forms: list[Form] = [tuple(_term(part) for part in parts.values())]
    while len(parts) > 2:
        one, other = min(added, key=added.__getitem__)
        parts[one] = _merged([parts[one], parts.pop(other)])
        taken[one] = time(_term(parts[one]))
        added = {pair: value for pair, value in added.items() if other not in pair}
        compare(one)
        forms.append(tuple(_term(part) for part in sorted(parts.values(), key=lambda part: part[0] & -part[0])))
    return forms


@lru_cache(_KEPT)
def _filled(groups: tuple[int, ...]) -> tuple[int, ...]:
    most = max(group.bit_count() for group in groups)
    return tuple(place for group in groups for place in (*members(group), *(_LEFT_OUT,) * (most - group.bit_count())))
