"""Image files: decoded into memory where they fit, else by worker processes while a network trains.

Both ways make the same pixels, and batches made from files are those made from memory, number for number. Random crops
need whole images, which are scaled until their shorter side has a size of its own and are then cut. What is scaled can
be cached, so that crops come from the same pixels with and without a cache.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nas_blockout.data.downloads import Arrays, cached, digest
from nas_blockout.data.errors import DataCorrupt, DataUnsuitable, all_corrupt
from nas_blockout.data.placement import Placement
from nas_blockout.data.preprocessing import Preprocessing
from nas_blockout.data.streaming.decoders import Decoders
from nas_blockout.data.streaming.image_cache import CachedImages, Pixels, cached_images
from nas_blockout.data.streaming.image_io import UNREADABLE, opaque, resized
from nas_blockout.data.streaming.random_crops import crop_of, middle
from nas_blockout.data.tensor_dataset import Labeled, moved, scaled

MEMORY_BYTES = 2**31  # of normalized images, four bytes a value
CHANNELS = 3
MEASURED_IMAGES = 2048  # for mean and standard deviation; more change neither visibly
WORKERS = 2
_FLOAT_BYTES = 4
_SOME = 64  # images from which the size of a cache is estimated


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
        resize_size: Shorter side to which whole images are scaled before they are cut, in pixels, `side` or more; None
            to scale images until they cover the square, which is all that is kept of them.
        cache: The decoded images before they are cut; None to decode files.
        whole: The files that these are some of, and their numbers there, shape (n,), int64: all of them are cached
            together, once for every such part. None to cache these files alone.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    side: int
    root: Path | None = None
    memory_bytes: int = MEMORY_BYTES
    background: str = "white"
    resize_size: int | None = None
    cache: CachedImages | None = None
    whole: "tuple[ImageFiles, Tensor] | None" = None

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, index: Tensor) -> "ImageFiles":
        """Return the files and labels at an index, shape (m,), int64."""
        chosen = tuple(self.paths[number] for number in index.tolist())
        cache = None if self.cache is None else self.cache.at(index)
        return replace(self, paths=chosen, labels=self.labels.index_select(0, index), cache=cache, whole=None)

    def part(self, index: Tensor) -> "ImageFiles":
        """Return the files at an index as `at` does, for data of several such parts, such as folds: see `whole`."""
        return replace(self.at(index), whole=(self, index))

    def loaded(self) -> "Labeled | ImageFiles":
        """Return the decoded images where they fit into memory, else itself; if images are cut later, with a cache.

        Raises:
            DataCorrupt: Files are no images or are truncated; the message names the first of them and counts all.
            DataUnsuitable: There is no space for the cache.
        """
        if not self._fit_memory:
            return self
        if self.resize_size is not None:
            return self if self.root is None else self.cached()
        if self.whole is not None and self.root is not None and self.whole[0]._fit_memory:
            files, index = self.whole
            return files.loaded().at(index)
        arrays = cached(self.root, self._key(), partial(_decode_all, self))
        return Labeled(torch.from_numpy(arrays["images"]), self.labels)

    def cached(self, *, threads: int = WORKERS) -> "ImageFiles":
        """Return itself with its decoded images in the cache, where they are written first.

        Args:
            threads: That decode at the same time.

        Raises:
            DataCorrupt: Files are no images or are truncated; the message names the first of them and counts all.
            DataUnsuitable: There is no folder for the cache, or no space.
        """
        if self.cache is not None:
            return self
        if self.root is None:
            raise DataUnsuitable("an image cache needs a data root, got none; set NAS_BLOCKOUT_DATA to a folder")
        if self.whole is not None:
            files, index = self.whole
            all_of_them = files.cached(threads=threads).cache
            assert all_of_them is not None, "it has just been written"
            return replace(self, cache=all_of_them.at(index), whole=None)
        folder = self.root / "cache" / f"whole-{self._key()}"
        return replace(self, cache=cached_images(folder, self.paths, self.pixels, threads=threads))

    def read(self, number: int, choices: Tensor | None = None) -> Tensor:
        """Return an image by its number, shape (3, side, side), uint8; with choices a random crop, else its middle."""
        return self.cut(self.pixels(self.paths[number]) if self.cache is None else self.cache[number], choices)

    def decoded_bytes(self) -> int:
        """Return about how many bytes a cache of the decoded images takes, from some of them.

        Raises:
            DataCorrupt: One of these is not an image or is truncated.
        """
        some = self.paths[:: max(1, len(self) // _SOME)]
        return round(sum(self.pixels(path).nbytes for path in some) / max(1, len(some)) * len(self))

    @property
    def _fit_memory(self) -> bool:
        # As if every value took four bytes and images were squares: where the limit lies decides on how many images
        # the normalization is measured, so it stays where it was.
        return len(self) * CHANNELS * (self.resize_size or self.side) ** 2 * _FLOAT_BYTES <= self.memory_bytes

    def _key(self) -> str:
        """Return a name for the decoded images, with a hash of all that they depend on."""
        stamps = {}
        for path in self.paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise _corrupt(path, error) from error
            # Sizes and times stand for the content: to hash the files would take as long as to decode them.
            stamps[str(path)] = f"{stat.st_size}/{stat.st_mtime_ns}".encode()
        size = self.side if self.resize_size is None else f"short{self.resize_size}"
        return f"images-{size}-{self.background}-{digest(stamps)}"

    def pixels(self, path: Path) -> Pixels:
        """Return an image before it is cut, shape (height, width, 3), uint8.

        Raises:
            DataCorrupt: The file is not an image or is truncated.
        """
        return _opened(path, self.background, self.side, self.resize_size)

    def cut(self, pixels: Pixels, choices: Tensor | None = None) -> Tensor:
        """Return a square of an image, shape (3, side, side), uint8: a random crop, or without choices its middle.

        Args:
            pixels: Of the image before it is cut.
            choices: Of its crop, as `random_crops` draws them.
        """
        height, width, _ = pixels.shape
        if choices is None and height == width == self.side:
            return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
        box = middle(height, width, (self.side, self.side)) if choices is None else crop_of(choices, height, width)
        top, left, high, wide = box
        crop = np.array(pixels[top : top + high, left : left + wide])
        if (high, wide) != (self.side, self.side):
            scaled_crop = Image.fromarray(crop).resize((self.side, self.side), Image.Resampling.BILINEAR)
            crop = np.array(scaled_crop)
        return torch.from_numpy(crop).permute(2, 0, 1).contiguous()

    def decode(self, path: Path) -> Tensor:
        """Return one of the images as a network is evaluated on it, shape (3, side, side), uint8."""
        return self.cut(self.pixels(path))

    def unreadable(self) -> list[str]:
        """Decode every file; return a message for each that is no image or is truncated."""
        with ThreadPoolExecutor(WORKERS) as pool:
            results = pool.map(partial(_decoded_or_problem, self), self.paths)
            return [result for result in results if isinstance(result, str)]

    def scaled(self) -> Iterator[Tensor]:
        """Yield images in batches, float32 in [0, 1]; of many files evenly spaced ones only."""
        step = max(1, len(self) // MEASURED_IMAGES)
        for start in range(0, len(self), 64 * step):
            chosen = range(len(self))[start : start + 64 * step : step]
            yield scaled(torch.stack([self.read(number) for number in chosen]))

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

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Return images normalized, shape (m, channels, height, width), float32."""
        images = torch.stack([self.part.files.read(number) for number in torch.arange(len(self.part))[chosen].tolist()])
        return self.part.preprocessing.on(self.device)(images.to(self.device))


@dataclass(frozen=True, slots=True, eq=False)
class StreamedPart:
    """One split of image files that are decoded when they are needed; offers what `Part` does.

    Args:
        files: What is decoded.
        preprocessing: Applied to each batch, on its device.
        workers: Processes that decode, 0 or more.
        decoders: Processes that stay between passes; None to start them for each.
    """

    files: ImageFiles
    preprocessing: Preprocessing
    workers: int = WORKERS
    decoders: Decoders | None = field(default=None, repr=False)

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
        return replace(self, files=self.files.at(index), decoders=None)

    def placed(self, placement: Placement) -> "StreamedPart":
        """Return the part with its batches on a device, its decoded images cached, and processes that stay.

        Raises:
            DataCorrupt: Files to be cached are no images or are truncated.
            DataUnsuitable: The cache has no place.
        """
        files = self.files.cached(threads=placement.decoders) if placement.image_cache == "disk" else self.files
        part = replace(self, files=files, workers=placement.decoders).to(placement.device)
        return replace(part, decoders=part.starting(pinned=part.device.type == "cuda"))

    def to(self, device: str | torch.device) -> "StreamedPart":
        """Return the part with its batches on a device."""
        return replace(self, files=replace(self.files, labels=self.labels.to(device)), decoders=None)

    def starting(self, *, pinned: bool = False, stays: bool = True) -> Decoders:
        """Return decoders of the part, whose processes start with the first pass; see there."""
        # No tensor of an accelerator travels to other processes.
        files = replace(self.files, labels=torch.empty(0, dtype=torch.int64), whole=None)
        return Decoders(files.read, self.workers, pinned=pinned, stays=stays)

    def gather(
        self, batches: Sequence[Tensor], crops: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels for each batch of numbers, shape (m,), int64; the workers decode ahead.

        Args:
            batches: Numbers of images.
            crops: For each batch the choices of its crops, shape (choices, m); None for the middle of every image.

        Raises:
            DataCorrupt: A file is not an image, is truncated or is gone; the message names it.
        """
        normalize = self.preprocessing.on(self.device)
        decoders = self.decoders or self.starting(stays=False)
        # Workers send bytes, a quarter of the size of floats; scaled and normalized here, on the device.
        for chosen, images in zip(moved(batches, self.device), decoders.batches(batches, crops), strict=True):
            pixels = images.to(self.device, non_blocking=decoders.pinned)
            yield normalize(pixels), self.labels.index_select(0, chosen)


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
    return torch.from_numpy(_opened(path, background, side, None)).permute(2, 0, 1).contiguous()


def _opened(path: Path, background: str, side: int, resize_size: int | None) -> Pixels:
    """Return an image as color: a square that it covers, or all of it with a shorter side of `resize_size` pixels."""
    try:
        with Image.open(path) as file:
            color = opaque(file, background).convert("RGB")
            if resize_size is None:
                return np.array(ImageOps.fit(color, (side, side), method=Image.Resampling.BILINEAR))
            return np.array(resized(color, resize_size))
    except UNREADABLE as error:
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: BaseException) -> DataCorrupt:
    return DataCorrupt(f"{path} must be a whole image, got: {error}; repair or remove it")


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
