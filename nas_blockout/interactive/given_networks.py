"""Networks that a program holds, as factories: each has a name here for as long as something is made of it.

The name is that of an attribute of this module, so that settings of a backbone can name it like any other factory. What
the factory makes is a copy with the weights that the network has. The name means something in this process alone.
"""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import torch
from torch import nn

_GIVEN: dict[str, nn.Module] = {}
_NUMBERS = count(1)


@contextmanager
def given(network: nn.Module) -> Iterator[str]:
    """Yield the name of a factory that makes copies of a network, on the device on which tensors are made."""
    name = f"network_{next(_NUMBERS)}"
    _GIVEN[name] = network
    try:
        yield f"{__name__}:{name}"
    except ValueError as error:
        told = _without_names(str(error), type(network).__name__)
        if told == str(error):
            raise
        raise ValueError(told) from error
    finally:
        del _GIVEN[name]


def _without_names(text: str, name: str) -> str:
    """Return a message about a factory as one about a network of a program, which has no settings to name."""
    text = re.sub(rf"the network of {re.escape(__name__)}:network_\d+", f"the network {name}", text)
    text = re.sub(rf"{re.escape(__name__)}:network_\d+", name, text)
    return re.sub(r"^(backbone\.factory|backbone\.classes_layer|method\.name): ", "", text)


def _copied(name: str) -> nn.Module:
    return copy.deepcopy(_GIVEN[name]).to(torch.get_default_device())


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Return the factory of a network that is given at the moment."""
    if name not in _GIVEN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_copied, name)
