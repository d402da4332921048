"""What is learned from: one frozen value that a study file, the store and every worker share."""

from dataclasses import dataclass

NAMES = ("digits", "fashion_mnist", "glyphs", "cifar10", "cifar100", "imagefolder")
AUGMENTATIONS = ("none", "shift", "shift-flip", "shift-flip-cutout")
SMALLEST_SIDE, LARGEST_SIDE = 4, 1024


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which images are learned from, how many, and how they are varied in training.

    Args:
        name: A registered source, one of `NAMES`.
        train_samples: Size of a class-balanced subset of the training split, 1 or more; None for all. Subsets are
            nested: at one `split_seed` the subset of 200 is part of that of 400.
        validation_samples: Likewise for the validation split. A study of limited data sets both, so that what is
            carved off for validation is as scarce as what is trained on.
        split_seed: Seed of every random choice in the split, 0 or more. The seed of an experiment is another one.
        augment: How training images are varied, one of `AUGMENTATIONS`; see `nas_blockout.data.augment`.
        image_size: Side of the square images that `imagefolder` makes, in pixels; None for 64. Other sources have
            their own, and refuse it.
        folder: Folder of the images (`imagefolder`), of the fonts (`glyphs`) or of files already there; `digits`,
            which has no files, refuses it.

    Raises:
        ValueError: A value is out of range; the message shows it.
    """

    name: str = "digits"
    train_samples: int | None = None
    validation_samples: int | None = None
    split_seed: int = 0
    augment: str = "none"
    image_size: int | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        _one_of("name", self.name, NAMES)
        _one_of("augment", self.augment, AUGMENTATIONS)
        _at_least_one("train_samples", self.train_samples)
        _at_least_one("validation_samples", self.validation_samples)
        if not 0 <= self.split_seed < 2**63:
            raise ValueError(f"split_seed must lie in 0..2**63-1, got {self.split_seed}")
        if self.image_size is not None and not SMALLEST_SIDE <= self.image_size <= LARGEST_SIDE:
            raise ValueError(f"image_size must lie in {SMALLEST_SIDE}..{LARGEST_SIDE} pixels, got {self.image_size}")
        if self.image_size is not None and self.name != "imagefolder":
            raise ValueError(f"image_size is a setting of imagefolder alone, got {self.image_size} for {self.name}")
        if self.folder is not None and self.name == "digits":
            raise ValueError(f"digits ships with scikit-learn and reads no folder, got {self.folder!r}")
        if self.name == "imagefolder" and self.folder is None:
            raise ValueError("imagefolder needs the setting folder: the path of a folder with one sub-folder a class")


def _one_of(setting: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{setting} must be one of {', '.join(known)}, got {value!r}")


def _at_least_one(setting: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{setting} must be 1 or more, or null for all, got {value}")
