"""The data of a study, as one frozen value that the study file, the store and all workers share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Annotated

from nas_blockout.data.listings.group_template import TEMPLATE
from nas_blockout.plugins.options import PLUGIN_NAME, misnamed
from nas_blockout.settings_fields import SEED, Conflict, OneOf, Pattern, PlainMapping, Range, check, refuse

NAMES = ("digits", "fashion_mnist", "glyphs", "cifar10", "cifar100", "imagefolder", "table", "arrays")
OF_FILES = ("imagefolder", "table")  # sources that make squares of image files
RESIZED_CROP = "resized-crop-flip"
# What an augmentation is put together from, at most one of each; those that move pixels first, those that cover last.
COMBINED = (
    ("", "shift", "shift-flip", RESIZED_CROP),
    ("", "randaugment", "trivialaugment"),
    ("", "cutout", "random-erasing"),
)
AUGMENTATIONS = tuple("-".join(filter(None, parts)) or "none" for parts in product(*COMBINED))
BACKGROUNDS = ("white", "black", "gray", "dropped")
LAYOUTS = ("classes", "splits")
# Settings that not every source has, with those that have them.
_OWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("image_size", "resize_size", "background"), OF_FILES),
        "layout": ("imagefolder",),
        **dict.fromkeys(("min_images_per_class", "excluded_classes", "group_pattern"), OF_FILES),
        **dict.fromkeys(("table", "path_column", "label_column", "group_column", "split_column"), ("table",)),
    }
)
SMALLEST_SIDE, LARGEST_SIDE = 4, 1024
DEFAULT_SIDE = 64
MOST_FOLDS = 20


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which images are used, how many, and how they are augmented in training.

    Args:
        name: Name of a source, or of a plug-in that is one.
        train_samples: Size of a class-balanced subset of the training split; None for all. Subsets are nested: for the
            same `split_seed` the subset of 200 is part of that of 400.
        validation_samples: Size of a subset of the validation split, likewise. A study of scarce data sets both, so
            that validation data is as scarce as training data.
        split_seed: Seed of all random choices of the split, independent of the seeds of experiments.
        augment: Augmentation of training images: ``none``, or one or more, in this order and joined by hyphens, of
            ``shift``, ``shift-flip`` or ``resized-crop-flip`` (`imagefolder`); ``randaugment`` or
            ``trivialaugment``; ``cutout`` or ``random-erasing``. Or the name of a plug-in, which is one by itself.
        image_size: Side of the square images that `imagefolder` and `table` make, in pixels; None for 64. Other sources
            have a fixed size and do not accept it.
        resize_size: Shorter side, in pixels, to which whole images are scaled before a square of `image_size` is cut
            out of them (`imagefolder`, `table`): a random one in training with `resized-crop-flip`, else the middle
            one. None for eight sevenths of `image_size` with that augmentation, and without it for squares that have
            all of the shorter side.
        folder: Path of the folder with the images (`imagefolder`; of a `table`, that to which its paths are relative,
            None for its own), the fonts (`glyphs`) or files that are already there. In a study file a relative path is
            relative to that file. `digits` has no files and does not accept it.
        background: What the transparent pixels of an image show (`imagefolder`, `table`): white, black or gray, or with
            `dropped` the colors that transparency hides, as in version 1; None for white.
        layout: Whether the sub-folders of `folder` are `classes` or `splits` (`imagefolder`); None to recognize it by
            their names, and to refuse a folder in which that is not clear.
        min_images_per_class: Classes with fewer images are left out (`imagefolder`, `table`), instead of the data being
            refused; where the data has splits, images in train count, and one in each other split is needed. None to
            leave out none.
        excluded_classes: Names of classes to leave out (`imagefolder`, `table`).
        content: Hash of images and labels that a program gave (`arrays`), which is the name of their file in `folder`,
            or in ``arrays/`` of the data root; `nas_blockout.ArrayData` sets it.
        group_pattern: What in the path of an image names its group, such as a patient, a scene or a typeface
            (`imagefolder`, `table`): in angle brackets, with `*` for any characters, `#` for digits and `?` for one,
            such as ``<patient#>_*``. No group is in two splits. None for no groups.
        table: Path of a CSV or Parquet file with a row an image (`table`). In a study file a relative path is relative
            to that file.
        path_column: Column with the paths of the images (`table`); None for ``path``.
        label_column: Column with the classes (`table`); None for ``label``.
        group_column: Column with the groups of images (`table`), none of which is in two splits; None for no groups.
        split_column: Column that says train, validation or test (`table`); None to divide by `split_seed`.
        folds: Number of folds for cross-validation, in 2..20; None for one division. All images that are no test
            images, those of train and validation together, are divided by `split_seed` into folds of the same size and
            the same shares of the classes, and no group is in two folds. One fold is for validation, the others are
            trained on. The search holds out `fold`; the retraining with the first of the seeds holds out fold 0, that
            with the second fold 1, and so on.
        fold: Number of the fold for validation, from 0; None for 0.
        options: Settings of a source that is a plug-in; others have none.
        augment_options: Settings of an augmentation that is a plug-in; others have none.

    Raises:
        ValueError: A value is out of range; the message shows it.
    """

    name: Annotated[str, OneOf(NAMES, PLUGIN_NAME)] = "digits"
    train_samples: Annotated[int, Range(ge=1)] | None = None
    validation_samples: Annotated[int, Range(ge=1)] | None = None
    split_seed: Annotated[int, SEED] = 0
    augment: Annotated[str, OneOf(AUGMENTATIONS, PLUGIN_NAME)] = "none"
    image_size: Annotated[int, Range(ge=SMALLEST_SIDE, le=LARGEST_SIDE)] | None = None
    resize_size: Annotated[int, Range(ge=SMALLEST_SIDE, le=2 * LARGEST_SIDE)] | None = None
    folder: str | None = None
    background: Annotated[str, OneOf(BACKGROUNDS)] | None = None
    layout: Annotated[str, OneOf(LAYOUTS)] | None = None
    min_images_per_class: Annotated[int, Range(ge=1)] | None = None
    excluded_classes: tuple[str, ...] = ()
    content: Annotated[str, Pattern(r"[0-9a-f]{32}", "32 hexadecimal digits", "0" * 32)] | None = None
    group_pattern: Annotated[str, TEMPLATE] | None = None
    table: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    folds: Annotated[int, Range(ge=2, le=MOST_FOLDS)] | None = None
    fold: Annotated[int, Range(ge=0, le=MOST_FOLDS - 1)] | None = None
    options: PlainMapping = PlainMapping()  # noqa: RUF009  # it is immutable
    augment_options: PlainMapping = PlainMapping()  # noqa: RUF009  # likewise

    def __post_init__(self) -> None:
        check(self)
        refuse(self._conflicts())

    def _conflicts(self) -> Iterator[Conflict]:
        yield from misnamed("source", NAMES, self.name, self.options, key="name", options_key="options")
        own = self.augment_options
        yield from misnamed(
            "augmentation", AUGMENTATIONS, self.augment, own, key="augment", options_key="augment_options"
        )
        yield from self._of_folders()
        yield from self._of_tables()
        if self.fold is not None and self.folds is None:
            yield Conflict(
                f"fold is the number of one of the folds, got {self.fold}; set folds as well", "fold", "folds"
            )
        elif self.fold is not None and self.folds is not None and self.fold >= self.folds:
            yield Conflict(
                f"fold must lie in 0..{self.folds - 1} for {self.folds} folds, got {self.fold}", "fold", "folds"
            )
        for key, owners in _OWN.items():
            if (value := getattr(self, key)) not in (None, ()) and self.name not in owners:
                owner = f"{owners[0]} alone" if len(owners) == 1 else " and ".join(owners)
                yield Conflict(f"{key} is a setting of {owner}, got {value} for {self.name}", key, "name")
        if self.augment.startswith(RESIZED_CROP) and not self.has_files:
            sources = " and ".join(OF_FILES)
            message = f"augment {self.augment} cuts whole images of {sources}, got {self.name}, of fixed size"
            yield Conflict(message, "augment", "name")
        if self.resize_size is not None and self.resize_size < self.side_of_images:
            message = f"resize_size must be image_size ({self.side_of_images}) or more, got {self.resize_size}"
            yield Conflict(message, "resize_size", "image_size")
        if self.folder is not None and self.name == "digits":
            message = f"digits ships with scikit-learn and reads no folder, got {self.folder!r}"
            yield Conflict(message, "folder", "name")
        if self.name == "imagefolder" and self.folder is None:
            message = "imagefolder needs the setting folder: the path of a folder with one sub-folder a class"
            yield Conflict(message, "folder", "name")
        if (self.name == "arrays") != (self.content is not None):
            message = f"content goes with the source arrays, and it needs one, got {self.content} for {self.name}"
            yield Conflict(message, "content", "name")

    def _of_folders(self) -> Iterator[Conflict]:
        if self.name not in NAMES and self.folder is not None:
            message = f"folder is no setting of a plug-in, got {self.folder!r} for {self.name}; see its options"
            yield Conflict(message, "folder", "name")

    def _of_tables(self) -> Iterator[Conflict]:
        if self.name != "table":
            return
        if self.table is None:
            message = "table needs the setting table: the path of a CSV or Parquet file with a row an image"
            yield Conflict(message, "table", "name")
        columns = (self.path_column or "path", self.label_column or "label", self.group_column, self.split_column)
        named = [name for name in columns if name is not None]
        if len(set(named)) < len(named):
            message = f"a column of a table has one meaning, got {', '.join(named)} for path, label, group and split"
            yield Conflict(message, "path_column", "label_column", "group_column", "split_column")
        if self.group_column is not None and self.group_pattern is not None:
            message = "groups come from group_column or from group_pattern, got both; leave one out"
            yield Conflict(message, "group_pattern", "group_column")

    def holding_out(self, fold: int) -> "DataSettings":
        """Return the settings with another fold for validation; settings without folds as they are."""
        return self if self.folds is None else replace(self, fold=fold % self.folds)

    @property
    def has_files(self) -> bool:
        """Whether images are made of files, in whatever size and form these are."""
        return self.name in OF_FILES

    @property
    def side_of_images(self) -> int:
        """Height and width of the images that are made of files, in pixels."""
        return self.image_size or DEFAULT_SIDE

    @property
    def short_side(self) -> int | None:
        """Shorter side to which whole images are scaled before they are cut, in pixels; None if they are not cut."""
        if self.resize_size is None and self.augment.startswith(RESIZED_CROP):
            return round(self.side_of_images * 8 / 7)  # 256 for 224, as is usual
        return self.resize_size

    @property
    def background_of_images(self) -> str:
        """What transparent pixels show in images that a model trained on this data is given: black for other sources.

        Their images have no transparency, but a black background where they have one at all.
        """
        return (self.background or "white") if self.has_files else "black"
