"""The registry of search spaces, by the names that study files use."""

from collections.abc import Mapping
from functools import wraps
from inspect import signature
from types import MappingProxyType
from typing import Any

from nas_blockout.experiment import Experiment
from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.installed import Origin
from nas_blockout.plugins.named_code import told
from search_spaces.blockdrop import blockdrop
from search_spaces.blockout import blockout, structure
from search_spaces.branched import branched
from search_spaces.confusion import confusion
from search_spaces.darts import darts
from search_spaces.grid import MOST_POINTS, Point, grid
from search_spaces.regularizers import light_regularizers, regularizers
from search_spaces.training import training
from search_spaces.trial import Context, Recorded, Space, TooFew, Trial, compose, require_fit

# The built-in ones; `space_named` finds those of plug-ins as well.
SPACES: Mapping[str, Space] = MappingProxyType(
    {
        "blockdrop": blockdrop,
        "blockout": blockout,
        "branched": branched,
        "confusion": confusion,
        "darts": darts,
        "light_regularizers": light_regularizers,
        "regularizers": regularizers,
        "structure": structure,
        "training": training,
    }
)


def _read(found: Any, origin: Origin) -> Space:
    """Return the space that a plug-in stands for.

    Raises:
        ValueError: It is no function of two arguments.
    """
    takes = len(signature(found).parameters) if callable(found) and not isinstance(found, type) else 0
    if takes != 2:
        raise ValueError(
            f"it must be a function that takes a trial and a context, and returns an experiment, got {found!r}"
        )

    @wraps(found)
    def told_apart(trial: Trial, context: Context) -> Experiment:
        try:
            proposed = found(trial, context)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"the space {origin} failed: {told(error)}") from error
        if not isinstance(proposed, Experiment):
            raise ValueError(f"the space {origin} must return an Experiment, got {proposed!r}")
        return proposed

    return told_apart


CHOICES: Choices[Space] = Choices("space", SPACES, _read, key="space")


def space_named(name: Any) -> Space:
    """Return the search space of a name; a plug-in is imported.

    Raises:
        Conflict: There is none of that name, or the plug-in cannot be imported or is no space.
    """
    return CHOICES.named(name)


__all__ = [
    "CHOICES",
    "MOST_POINTS",
    "SPACES",
    "Context",
    "Point",
    "Recorded",
    "Space",
    "TooFew",
    "Trial",
    "compose",
    "grid",
    "require_fit",
    "space_named",
]
