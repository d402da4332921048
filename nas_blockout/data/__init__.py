"""Images to learn from: one file per source, one way to load them, and batches.

`load(DataSettings(...))` returns `Splits`; `Loader` makes batches of a part. A source reads files and divides them;
cutting to size and normalising is common to all (`splits`). Nothing here knows networks or methods.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_blockout.data import digits
from nas_blockout.data.errors import DataCorrupt, DataError, DataMissing, DataUnsuitable
from nas_blockout.data.loader import Loader
from nas_blockout.data.settings import DataSettings
from nas_blockout.data.splits import Collection, Part, Preprocessing, Splits, prepare

__all__ = [
    "SOURCES",
    "DataCorrupt",
    "DataError",
    "DataMissing",
    "DataSettings",
    "DataUnsuitable",
    "Loader",
    "Part",
    "Preprocessing",
    "Source",
    "Splits",
    "load",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where images come from.

    Args:
        summary: What it holds, in one line.
        read: Reads and divides the files: `read(settings, root)`.
    """

    summary: str
    read: Callable[[DataSettings, Path | None], Collection]


SOURCES: Mapping[str, Source] = {
    "digits": Source("1,797 handwritten digits, grey 8x8, 10 classes; ships with scikit-learn", digits.read),
}


def load(settings: DataSettings, *, root: Path | None = None) -> Splits:
    """Load the training and validation images of a source; test images are read when `Splits.test` is called.

    Args:
        settings: What is loaded.
        root: Folder of downloaded data sets and of caches; None to use only what is elsewhere, and no cache.

    Raises:
        DataMissing: Files are not there; the message has the command that gets them.
        DataCorrupt: A file is truncated or altered.
        DataUnsuitable: A class has no image in a split, or more samples are asked for than there are.
    """
    collection = SOURCES[settings.name].read(settings, root)
    return prepare(
        collection,
        train_samples=settings.train_samples,
        validation_samples=settings.validation_samples,
        split_seed=settings.split_seed,
    )
