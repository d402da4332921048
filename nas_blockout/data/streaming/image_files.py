"""Image files: decoded into memory where they fit, else by worker processes while a network trains.

Both ways make the same pixels, and batches made from files are those made from memory, number for number.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas_blockout.data.downloads import Arrays, cached, digest
from nas_blockout.data.errors import DataCorrupt, all_corrupt
from nas_blockout.data.placement import Placement
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.streaming.image_io import UNREADABLE, opaque
from nas_blockout.data.tensor_dataset import Labeled, scaled

MEMORY_BYTES = 2**31  # of normalized images, four bytes a value
CHANNELS = 3
MEASURED_IMAGES = 2048  # for mean and standard deviation; more change neither visibly
WORKERS = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class ImageFiles:
    """Image files and their classes.

    Args:
        paths: Of n files.
        labels: Shape (n,), int64, numbers of classes.
        side: Height and width that images get, in pixels.
        root: Decoded images are cached in it; None for no cache.
        memory_bytes: Images that take more than this are not kept in memory.
        background: What transparent pixels show, as in `nas_blockout.data.streaming.image_io`.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    side: int
    root: Path | None = None
    memory_bytes: int = MEMORY_BYTES
    background: str = "white"

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, index: Tensor) -> "ImageFiles":
        """Return the files and labels at an index, shape (m,), int64."""
        chosen = tuple(self.paths[number] for number in index.tolist())
        return replace(self, paths=chosen, labels=self.labels.index_select(0, index))

    def loaded(self) -> "Labeled | ImageFiles":
        """Return the decoded images, or itself where they do not fit into memory.

        Raises:
            DataCorrupt: Files are no images or are truncated; the message names the first of them and counts all.
        """
        if len(self) * CHANNELS * self.side**2 * _FLOAT_BYTES > self.memory_bytes:
            return self
        # Sizes and times stand for the content: to hash the files would take as long as to decode them.
        stamps = {str(path): f"{path.stat().st_size}/{path.stat().st_mtime_ns}".encode() for path in self.paths}
        arrays = cached(self.root, f"images-{self.side}-{self.background}-{digest(stamps)}", partial(_decode_all, self))
        return Labeled(torch.from_numpy(arrays["images"]), self.labels)

    def decode(self, path: Path) -> Tensor:
        """Return one of the images; see the function of this name."""
        return decode(path, self.side, self.background)

    def unreadable(self) -> list[str]:
        """Decode every file; return a message for each that is no image or is truncated."""
        with ThreadPoolExecutor(WORKERS) as pool:
            results = pool.map(partial(_decoded_or_problem, self), self.paths)
            return [result for result in results if isinstance(result, str)]

    def scaled(self) -> Iterator[Tensor]:
        """Yield images in batches, float32 in [0, 1]; of many files evenly spaced ones only."""
        step = max(1, len(self) // MEASURED_IMAGES)
        for start in range(0, len(self), 64 * step):
            chosen = self.paths[start : start + 64 * step : step]
            yield scaled(torch.stack([self.decode(path) for path in chosen]))

    def normalized(self, preprocessing: Preprocessing) -> "StreamedPart":
        """Return the images as a network reads them, decoded on access."""
        return StreamedPart(self, preprocessing)


@dataclass(frozen=True, slots=True, eq=False)
class StreamedImages:
    """Normalized images that are decoded when they are sliced: stands in for the images of a `Part`."""

    part: "StreamedPart"

    @property
    def shape(self) -> torch.Size:
        """Shape (n, channels, height, width)."""
        side = self.part.files.side
        return torch.Size((len(self.part), CHANNELS, side, side))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.part.labels.device

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, chosen: slice) -> Tensor:
        files = self.part.files
        images = torch.stack([files.decode(path) for path in files.paths[chosen]])
        return self.part.preprocessing.apply(scaled(images)).to(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class StreamedPart:
    """One split too large for memory; offers what `Part` does.

    Args:
        files: What is decoded.
        preprocessing: Applied to each batch.
        workers: Processes that decode, 0 or more.
    """

    files: ImageFiles
    preprocessing: Preprocessing
    workers: int = WORKERS

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """Classes, shape (n,), int64."""
        return self.files.labels

    @property
    def images(self) -> StreamedImages:
        """Images, decoded when they are sliced."""
        return StreamedImages(self)

    @property
    def background(self) -> tuple[float, ...]:
        """What a pixel outside the image is worth, for each channel."""
        return self.preprocessing.background

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    def at(self, index: Tensor) -> "StreamedPart":
        """Return the images and labels at an index, shape (m,), int64."""
        return replace(self, files=self.files.at(index))

    def placed(self, placement: Placement) -> "StreamedPart":
        """Return the part with its batches on a device."""
        return self.to(placement.device)

    def to(self, device: str | torch.device) -> "StreamedPart":
        """Return the part with its batches on a device."""
        return replace(self, files=replace(self.files, labels=self.labels.to(device)))

    def gather(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of numbers, shape (m,), int64; the workers decode ahead.

        Raises:
            DataCorrupt: A file is not an image or is truncated; the message names it.
        """
        device = self.labels.device
        normalize = self.preprocessing.on(device)
        # Workers send bytes, a quarter of the size of floats; scaled and normalized here, on the device.
        for index, images in zip(batches, self._decoded(batches), strict=True):
            yield normalize(images.to(device)), self.labels[index.to(device)]

    def _decoded(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        decoded = DataLoader(
            _Decoded(self.files),
            # The order is the caller's, the same as from memory; the loader may only decode ahead.
            batch_sampler=[index.tolist() for index in batches],
            num_workers=self.workers,
            collate_fn=torch.stack,
            generator=torch.Generator(),  # else the loader would draw from the global one
        )
        try:
            yield from decoded
            return
        except DataCorrupt as error:  # of a worker: its message begins with the worker's own traceback
            problem = str(error).rpartition(f"{DataCorrupt.__name__}: ")[2].strip()
            error.__traceback__ = None  # its frames hold the workers, which would live on until they are collected
        raise DataCorrupt(problem)


class _Decoded(Dataset[Tensor]):
    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __getitem__(self, number: int) -> Tensor:
        return self.files.decode(self.files.paths[number])


def decode(path: Path, side: int, background: str = "white") -> Tensor:
    """Return an image as color: scaled until its shorter side fits, the middle square cut out.

    Args:
        path: A file that Pillow reads.
        side: Height and width of the square.
        background: What transparent pixels show, as in `nas_blockout.data.streaming.image_io`.

    Returns:
        Shape (3, side, side), uint8.

    Raises:
        DataCorrupt: The file is not an image or is truncated.
    """
    try:
        with Image.open(path) as file:
            square = ImageOps.fit(
                opaque(file, background).convert("RGB"), (side, side), method=Image.Resampling.BILINEAR
            )
    except UNREADABLE as error:
        raise DataCorrupt(f"{path} must be a whole image, got: {error}; repair or remove it") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def _decode_all(files: ImageFiles) -> Arrays:
    with ThreadPoolExecutor(WORKERS) as pool:  # threads: Pillow releases the interpreter lock while it decodes
        results = list(pool.map(partial(_decoded_or_problem, files), files.paths))
    if problems := [result for result in results if isinstance(result, str)]:
        raise all_corrupt(problems)
    return {"images": np.stack([image.numpy() for image in results if isinstance(image, Tensor)])}


def _decoded_or_problem(files: ImageFiles, path: Path) -> Tensor | str:
    try:
        return files.decode(path)
    except DataCorrupt as error:
        return str(error)
