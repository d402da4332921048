"""Training, validation and test data: how they are divided, normalised, and how the test data stays untouched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nas_blockout.data.errors import DataUnsuitable


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What turns an image with values in [0, 1] into what a network reads: `(image - mean) / std` for each channel.

    Args:
        channels: 1 for grey, 3 for red, green and blue.
        height: In pixels.
        width: In pixels.
        mean: For each channel, over the images trained on.
        std: Likewise the standard deviation, above 0.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need {self.channels} values, one a channel, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {self.std}")

    @property
    def background(self) -> tuple[float, ...]:
        """What a black pixel becomes, for each channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))

    def apply(self, images: Tensor) -> Tensor:
        """Normalise images, shape (n, channels, height, width), float with values in [0, 1]."""
        return images.sub(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))

    def undo(self, images: Tensor) -> Tensor:
        """Return normalised images as values in [0, 1], for corrupting or drawing them."""
        return images.mul(_per_channel(self.std, images)).add_(_per_channel(self.mean, images)).clamp_(0, 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Preprocessing":
        """Build from what `to_json` returned."""
        return cls(
            **{key: document[key] for key in ("channels", "height", "width")},
            **{key: tuple(document[key]) for key in ("mean", "std")},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images as their source has them, and their classes.

    Args:
        images: Shape (n, channels, height, width); uint8 in 0..255, or float32 in [0, 1].
        labels: Shape (n,), int64, numbers of classes.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> "Labelled":
        """Return the images and labels at an index, shape (m,), int64."""
        return Labelled(self.images.index_select(0, index), self.labels.index_select(0, index))

    def scaled(self) -> Tensor:
        """Return the images as float32 in [0, 1]."""
        return self.images.to(torch.float32).div_(255) if self.images.dtype == torch.uint8 else self.images


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One split in memory, normalised.

    Args:
        images: Shape (n, channels, height, width), float32.
        labels: Shape (n,), int64.
        background: What a pixel outside the image is worth, for each channel; None for 0.
    """

    images: Tensor
    labels: Tensor
    background: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.ndim != 1 or len(self.images) != len(self.labels):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"images must be (n, channels, height, width) and labels (n,), got {shapes}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "Part":
        """Return the part with its tensors on a device."""
        return Part(self.images.to(device), self.labels.to(device), self.background)


class Splits:
    """The data of one experiment. Test images are loaded when `test()` is called, and every call is counted.

    Attributes:
        train: What is trained on.
        validation: What every selection is made on.
        preprocessing: Taken from the images trained on, and from no others.
        class_names: In the order of the labels.
        hierarchy: For each known grouping of the classes, the number of every class's group; None without one.
        test_reads: How often the test data was asked for.
    """

    def __init__(
        self,
        train: Part,
        validation: Part,
        *,
        preprocessing: Preprocessing,
        class_names: tuple[str, ...],
        load_test: Callable[[], Labelled],
        hierarchy: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.train = train
        self.validation = validation
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.hierarchy = hierarchy
        self.test_reads = 0
        self._load_test = load_test

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width

    def test(self) -> Part:
        """Load the test data: the only way to it."""
        self.test_reads += 1
        return _part(self._load_test(), self.preprocessing)


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """What a source hands over: divided, not yet cut to size and normalised.

    Args:
        train: Images that may be trained on.
        validation: Images to select on.
        load_test: Reads the test images; called by `Splits.test` alone.
        class_names: In the order of the labels.
        hierarchy: For each known grouping of the classes, the number of every class's group.
    """

    train: Labelled
    validation: Labelled
    load_test: Callable[[], Labelled]
    class_names: tuple[str, ...]
    hierarchy: Mapping[str, tuple[int, ...]] | None = None


def prepare(
    collection: Collection, *, train_samples: int | None, validation_samples: int | None, split_seed: int
) -> Splits:
    """Cut a collection to size, measure the normalisation on what is trained on, and apply it.

    Raises:
        DataUnsuitable: A class has no image in a split, more images are asked for than there are, or all are equal.
    """
    train = _subset(collection.train, train_samples, seed=split_seed, name="train")
    validation = _subset(collection.validation, validation_samples, seed=split_seed, name="validation")
    for name, labelled in (("training", train), ("validation", validation)):
        _require_classes(labelled.labels, collection.class_names, name)
    preprocessing = measure(train)
    return Splits(
        _part(train, preprocessing),
        _part(validation, preprocessing),
        preprocessing=preprocessing,
        class_names=collection.class_names,
        load_test=collection.load_test,
        hierarchy=collection.hierarchy,
    )


def measure(labelled: Labelled) -> Preprocessing:
    """Measure mean and standard deviation of every channel.

    Raises:
        DataUnsuitable: A channel has the same value everywhere.
    """
    _, channels, height, width = labelled.images.shape
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for images in torch.split(labelled.images, 4096):
        values = Labelled(images, labelled.labels).scaled().double()
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = sums / (len(labelled) * height * width)
    std = (square - mean.square()).clamp_min(0).sqrt()
    if std.min() < 1e-6:
        raise DataUnsuitable(f"training images must vary in every channel, got standard deviations {std.tolist()}")
    return Preprocessing(channels, height, width, tuple(mean.tolist()), tuple(std.tolist()))


def stratified(labels: Tensor, shares: Sequence[float], *, seed: int) -> tuple[Tensor, ...]:
    """Divide images into parts of which each has every class in the same share.

    Args:
        labels: Shape (n,), int64.
        shares: Of each part but the last, in 0..1, with a sum below 1; the last part gets the rest. In every class a
            part gets its share rounded to the nearest image, and at least one where the class has that many.
        seed: Of the draw; the result depends on the labels, the shares and the seed alone.

    Returns:
        For each part the sorted numbers of its images; one part more than there are shares.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in labels.bincount().nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        for part, piece in zip(parts, torch.split(members, _sizes(len(members), shares)), strict=True):
            part.append(piece)
    return tuple(torch.cat(part).sort().values for part in parts)


def balanced(labels: Tensor, samples: int, *, seed: int) -> Tensor:
    """Choose a class-balanced subset; at one seed a smaller subset is part of every larger one.

    Images are taken in rounds, one of each class a round, so that classes differ by at most one image for as long as
    none runs out.

    Args:
        labels: Shape (n,), int64.
        samples: In 1..n.
        seed: Of the order within a class and within a round.

    Returns:
        Sorted numbers of the chosen images, shape (samples,).
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    rounds = torch.arange(len(labels)) - starts.repeat_interleave(counts)
    tie = torch.randperm(len(labels), generator=generator)
    return by_class[tie][rounds[tie].argsort(stable=True)][:samples].sort().values


def _sizes(members: int, shares: Sequence[float]) -> list[int]:
    spare = members
    sizes = []
    for parts_after, share in zip(range(len(shares), 0, -1), shares, strict=True):
        wanted = max(1, round(members * share)) if share > 0 else 0
        sizes.append(max(0, min(wanted, spare - parts_after)))
        spare -= sizes[-1]
    return [*sizes, spare]


def _subset(labelled: Labelled, samples: int | None, *, seed: int, name: str) -> Labelled:
    if samples is None:
        return labelled
    if samples > len(labelled):
        raise DataUnsuitable(f"{name}_samples must be at most the {len(labelled)} images of that split, got {samples}")
    return labelled.at(balanced(labelled.labels, samples, seed=seed))


def _require_classes(labels: Tensor, class_names: tuple[str, ...], split: str) -> None:
    counts = labels.bincount(minlength=len(class_names))
    empty = [class_names[index] for index in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataUnsuitable(
            f"every class needs an image in every split, but {len(empty)} of {len(class_names)} classes have none in "
            f"the {split} split ({len(labels)} images): {shown}; add images, ask for more samples, or leave them out"
        )


def _part(labelled: Labelled, preprocessing: Preprocessing) -> Part:
    return Part(preprocessing.apply(labelled.scaled()), labelled.labels, preprocessing.background)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
