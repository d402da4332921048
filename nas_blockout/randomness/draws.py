"""Where random numbers of a training step come from: a generator, or numbers that were drawn before the step.

A compiled step cannot call a generator. All numbers that it will ask for are then drawn at once, before it begins, and
handed out in the order in which they are asked for: on a CPU these are the numbers that the generator would have given.
"""

from typing import Protocol

import torch
from torch import Tensor

_LOWEST_PAIR = -(2**63)  # from here up, `random_` fills all 64 bits: two integers of 32


class Draws(Protocol):
    """Random numbers that are handed out in order."""

    def bits(self, number: int, device: torch.device) -> Tensor:
        """Return integers, each of the 2**32 equally likely, int32, shape ``(number,)``."""

    def uniforms(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return numbers that are uniform in [0, 1)."""


Randomness = torch.Generator | Draws


def in_one_piece(source: Randomness | None) -> bool:
    """Return whether the step that asks is computed without a look at any value: it is compiled, or only counted."""
    return torch.compiler.is_compiling() or not (source is None or isinstance(source, torch.Generator))


def random_bits(source: Randomness, number: int, device: torch.device) -> Tensor:
    """Return random integers, int32, shape ``(number,)``, each of the 2**32 equally likely.

    Args:
        source: On `device`.
        number: How many, 0 or more.
        device: Of the result.
    """
    if not isinstance(source, torch.Generator):
        return source.bits(number, device)
    pairs = torch.empty((number + 1) // 2, dtype=torch.int64, device=device)
    return pairs.random_(_LOWEST_PAIR, None, generator=source).view(torch.int32)[:number]


def random_uniforms(source: Randomness, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return random numbers that are uniform in [0, 1).

    Args:
        source: On `device`.
        shape: Of the result.
        dtype: Of the result, a floating one.
        device: Of the result.
    """
    if isinstance(source, torch.Generator):
        return torch.rand(shape, generator=source, dtype=dtype, device=device)
    return source.uniforms(shape, dtype, device)


class DrawsBefore:
    """Numbers that were drawn before a step.

    Args:
        bits: Random integers, int32, one-dimensional.
        uniforms: Uniform numbers in [0, 1), float32, one-dimensional.
    """

    def __init__(self, bits: Tensor, uniforms: Tensor) -> None:
        self._bits, self._uniforms = bits, uniforms
        self._bit, self._uniform = 0, 0

    def bits(self, number: int, device: torch.device) -> Tensor:
        """Return the next integers, int32, shape ``(number,)``."""
        first, self._bit = self._bit, self._bit + _pairs(number)
        return self._bits[first : first + number]

    def uniforms(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the next uniform numbers."""
        number = _product(shape)
        first, self._uniform = self._uniform, self._uniform + number
        return self._uniforms[first : first + number].view(shape).to(dtype)


class DrawCounter:
    """Counts how many numbers a step asks for; what it hands out are zeros.

    Attributes:
        bit_count: Integers so far.
        uniform_count: Uniform numbers so far.
    """

    def __init__(self) -> None:
        self.bit_count, self.uniform_count = 0, 0

    def bits(self, number: int, device: torch.device) -> Tensor:
        """Return zeros, int32, shape ``(number,)``."""
        self.bit_count += _pairs(number)
        return torch.zeros(number, dtype=torch.int32, device=device)

    def uniforms(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros."""
        self.uniform_count += _product(shape)
        return torch.zeros(shape, dtype=dtype, device=device)

    def drawn(self, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw as many numbers as were asked for: bits and uniforms, as `DrawsBefore` takes them."""
        return (
            random_bits(generator, self.bit_count, device),
            random_uniforms(generator, (self.uniform_count,), torch.float32, device),
        )


def _pairs(number: int) -> int:
    """Return how many integers a generator takes for as many: it draws pairs."""
    return (number + 1) // 2 * 2


def _product(shape: tuple[int, ...]) -> int:
    number = 1
    for side in shape:
        number *= side
    return number
