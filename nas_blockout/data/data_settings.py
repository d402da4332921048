"""The data of a study, as one frozen value that the study file, the store and all workers share."""

from dataclasses import dataclass
from typing import Annotated

from nas_blockout.settings_fields import SEED, OneOf, Range, check

NAMES = ("digits", "fashion_mnist", "glyphs", "cifar10", "cifar100", "imagefolder")
AUGMENTATIONS = ("none", "shift", "shift-flip", "shift-flip-cutout")
SMALLEST_SIDE, LARGEST_SIDE = 4, 1024


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which images are used, how many, and how they are augmented in training.

    Args:
        name: Name of a registered source.
        train_samples: Size of a class-balanced subset of the training split; None for all. Subsets are nested: for the
            same `split_seed` the subset of 200 is part of that of 400.
        validation_samples: Size of a subset of the validation split, likewise. A study of scarce data sets both, so
            that validation data is as scarce as training data.
        split_seed: Seed of all random choices of the split, independent of the seeds of experiments.
        augment: Augmentation of training images; see `nas_blockout.data.augment`.
        image_size: Side of the square images that `imagefolder` makes, in pixels; None for 64. Other sources have
            a fixed size and do not accept it.
        folder: Path of the folder with the images (`imagefolder`), the fonts (`glyphs`) or files that are already
            there. In a study file a relative path is relative to that file. `digits` has no files and does not accept
            it.

    Raises:
        ValueError: A value is out of range; the message shows it.
    """

    name: Annotated[str, OneOf(NAMES)] = "digits"
    train_samples: Annotated[int, Range(ge=1)] | None = None
    validation_samples: Annotated[int, Range(ge=1)] | None = None
    split_seed: Annotated[int, SEED] = 0
    augment: Annotated[str, OneOf(AUGMENTATIONS)] = "none"
    image_size: Annotated[int, Range(ge=SMALLEST_SIDE, le=LARGEST_SIDE)] | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.image_size is not None and self.name != "imagefolder":
            raise ValueError(f"image_size is a setting of imagefolder alone, got {self.image_size} for {self.name}")
        if self.folder is not None and self.name == "digits":
            raise ValueError(f"digits ships with scikit-learn and reads no folder, got {self.folder!r}")
        if self.name == "imagefolder" and self.folder is None:
            raise ValueError("imagefolder needs the setting folder: the path of a folder with one sub-folder a class")
