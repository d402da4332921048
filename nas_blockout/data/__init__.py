"""Images to learn from: one file per source, one way to load them, and batches.

`load(DataSettings(...))` returns `Splits`; `Loader` makes batches of a part. A source reads files and divides them;
cutting to size and normalizing is common to all (`splits`). Nothing here knows networks or methods.
"""

from nas_blockout.data.alternation import AlternatingLoader
from nas_blockout.data.arrays import ArrayData
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataCorrupt, DataError, DataMissing, DataUnsuitable
from nas_blockout.data.loader import Loader
from nas_blockout.data.placement import Placement
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.sources.registry import SOURCES, Dimensions, Source, dimensions, load, recognized
from nas_blockout.data.splits import AnyImages, AnyPart, Splits
from nas_blockout.data.streaming import StreamedPart
from nas_blockout.data.summary import Report, check, fetch, show
from nas_blockout.data.tensor_dataset import BytePart, Part

__all__ = [
    "SOURCES",
    "AlternatingLoader",
    "AnyImages",
    "AnyPart",
    "ArrayData",
    "BytePart",
    "DataCorrupt",
    "DataError",
    "DataMissing",
    "DataSettings",
    "DataUnsuitable",
    "Dimensions",
    "Loader",
    "Part",
    "Placement",
    "Preprocessing",
    "Report",
    "Source",
    "Splits",
    "StreamedPart",
    "check",
    "dimensions",
    "fetch",
    "load",
    "recognized",
    "show",
]
