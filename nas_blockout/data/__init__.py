"""Images to learn from: one file per source, one way to load them, and batches.

`load(DataSettings(...))` returns `Splits`; `Loader` makes batches of a part. A source reads files and divides them;
cutting to size and normalizing is common to all (`splits`). Nothing here knows networks or methods.
"""

from nas_blockout.data.alternation import AlternatingLoader, require_held_batch
from nas_blockout.data.arrays import ArrayData
from nas_blockout.data.augment import AUGMENTATION_CHOICES
from nas_blockout.data.augmentations.plugin_augmentation import Augmentation
from nas_blockout.data.data_settings import DataSettings
from nas_blockout.data.errors import DataCorrupt, DataError, DataMissing, DataUnsuitable
from nas_blockout.data.listings.group_division import divided_by_groups
from nas_blockout.data.loader import Loader
from nas_blockout.data.placement import Placement
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.sources.data_source import DataSource, Dimensions
from nas_blockout.data.sources.registry import CHOICES, SOURCES, Source, dimensions, load, recognized, resolved
from nas_blockout.data.splits import AnyImages, AnyPart, Collection, Splits
from nas_blockout.data.streaming import ImageFiles, StreamedPart
from nas_blockout.data.subsets import stratified
from nas_blockout.data.summary import Report, check, fetch, show
from nas_blockout.data.tensor_dataset import BytePart, Labeled, Part

__all__ = [
    "AUGMENTATION_CHOICES",
    "CHOICES",
    "SOURCES",
    "AlternatingLoader",
    "AnyImages",
    "AnyPart",
    "ArrayData",
    "Augmentation",
    "BytePart",
    "Collection",
    "DataCorrupt",
    "DataError",
    "DataMissing",
    "DataSettings",
    "DataSource",
    "DataUnsuitable",
    "Dimensions",
    "ImageFiles",
    "Labeled",
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
    "divided_by_groups",
    "fetch",
    "load",
    "recognized",
    "require_held_batch",
    "resolved",
    "show",
    "stratified",
]
