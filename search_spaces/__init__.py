"""The registry of search spaces, by the names that study files use."""

from collections.abc import Mapping
from types import MappingProxyType

from search_spaces.blockdrop import blockdrop
from search_spaces.blockout import blockout, structure
from search_spaces.branched import branched
from search_spaces.confusion import confusion
from search_spaces.grid import MOST_POINTS, Point, grid
from search_spaces.regularizers import light_regularizers, regularizers
from search_spaces.training import training
from search_spaces.trial import Context, Recorded, Space, TooFew, Trial, compose, require_fit

SPACES: Mapping[str, Space] = MappingProxyType(
    {
        "blockdrop": blockdrop,
        "blockout": blockout,
        "branched": branched,
        "confusion": confusion,
        "light_regularizers": light_regularizers,
        "regularizers": regularizers,
        "structure": structure,
        "training": training,
    }
)

__all__ = [
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
]
