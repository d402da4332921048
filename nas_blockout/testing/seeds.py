"""Seeds of the laws, and what shows that global randomness was left alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

SEED = 11


def seeded(seed: int = SEED, device: str = "cpu") -> torch.Generator:
    """Return a generator of its own with a seed."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def no_global_randomness() -> Iterator[None]:
    """Require that the global generators of PyTorch, numpy and Python are left as they were."""

    def states() -> tuple[Any, ...]:
        legacy: Any = np.random.get_state()  # noqa: NPY002  # it is what must not change
        return torch.get_rng_state().tolist(), legacy[1].tolist(), random.getstate()

    before = states()
    yield
    assert states() == before, "a global generator was used: draw from the generator that is given"
