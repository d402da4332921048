"""Speed of our input pipeline compared with torchvision's on the same images: ``python benchmarks/data.py``.

In memory, both shuffle, shift by up to an eighth of the side, flip and normalize. Ours does so on batches of tensors,
kept as bytes or normalized in advance; torchvision's is the usual one: a data set of images, transforms for each image,
and a DataLoader. From files, both cut random parts out of JPEG photographs of the usual size, ours also out of the
cache. All take turns within one run, so that a busy machine slows them alike; the ratio is what counts.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas_blockout.data import BytePart, Loader, Part, Preprocessing, StreamedPart
from nas_blockout.data.streaming import ImageFiles
from nas_blockout.lazy_torchvision import torchvision

MEAN, STD = 0.5, 0.25
CHANNELS, SIDE = 3, 32
CROPPED, RESIZED, PHOTOGRAPH = 224, 256, (375, 500)  # of ImageNet: sides, and the usual height and width

Begin = Callable[[], Iterable[Sequence[Tensor]]]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as in `torchvision.datasets.CIFAR10`: stored as arrays, returned one at a time and transformed."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


def plan(side: int) -> Preprocessing:
    """Return the normalization of images of a side."""
    return Preprocessing(CHANNELS, side, side, (MEAN,) * CHANNELS, (STD,) * CHANNELS)


def ours(part: Part | BytePart | StreamedPart, batch_size: int, augment: str) -> Begin:
    """Return a function that starts a pass through our loader."""
    loader = Loader(part, batch_size, augment=augment)
    generator = torch.Generator().manual_seed(0)
    return lambda: loader.batches(generator)


def theirs(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> Begin:
    """Return a function that starts a pass through torchvision's transforms and a DataLoader."""
    v2 = torchvision.transforms.v2
    steps = [v2.RandomCrop(SIDE, padding=SIDE // 8), v2.RandomHorizontalFlip(), *_to_tensor()]
    loader = DataLoader(
        Pictures(images, labels, v2.Compose(steps)),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: loader


def _to_tensor() -> list[Callable[[Image.Image], Tensor]]:
    v2 = torchvision.transforms.v2
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([MEAN] * CHANNELS, [STD] * CHANNELS),
    ]


class Photographs(Dataset[tuple[Tensor, int]]):
    """Image files as in `torchvision.datasets.ImageFolder`, cut at random as the recipes for ImageNet do."""

    def __init__(self, paths: Sequence[Path]) -> None:
        v2 = torchvision.transforms.v2
        self.paths = paths
        self.transform = v2.Compose([v2.RandomResizedCrop(CROPPED), v2.RandomHorizontalFlip(), *_to_tensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[number]) as image:
            return self.transform(image.convert("RGB")), 0


def from_memory(arguments: argparse.Namespace) -> Mapping[str, Begin]:
    """Return the pipelines for images in memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (arguments.images, CHANNELS, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (arguments.images,), generator=generator)
    part = BytePart(images, labels, plan(SIDE))
    return {
        "ours": ours(part, arguments.batch_size, "shift-flip"),
        "ours, normalized in advance": ours(
            Part(part.images[:], labels, part.background), arguments.batch_size, "shift-flip"
        ),
        **{
            f"DataLoader, {workers} workers": theirs(images, labels, arguments.batch_size, workers)
            for workers in (0, 2)
        },
    }


def from_files(folder: Path, count: int) -> Mapping[str, Begin]:
    """Return the pipelines for image files; all in one process, so that its CPU seconds are those of a core."""
    height, width = PHOTOGRAPH
    generator = torch.Generator().manual_seed(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:  # smooth, as photographs are, since noise takes longer to decode
        coarse = torch.rand(1, CHANNELS, height // 8, width // 8, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray(pixels.mul(255).byte().permute(1, 2, 0).numpy()).save(path, quality=90)
    files = ImageFiles(tuple(paths), torch.zeros(count, dtype=torch.int64), CROPPED, folder)
    cut = ImageFiles(files.paths, files.labels, CROPPED, folder, resize_size=RESIZED)
    squares, decoded, cached = (
        StreamedPart(each, plan(CROPPED), workers=0) for each in (files, cut, cut.cached(threads=1))
    )
    loader = DataLoader(Photographs(paths), 64, shuffle=True)
    return {
        "random crops, decoded": ours(decoded, 64, "resized-crop-flip"),
        "random crops, from the cache": ours(cached, 64, "resized-crop-flip"),
        "squares, decoded, flipped": ours(squares, 64, "shift-flip"),
        "torchvision, random crops": lambda: loader,
    }


def measured(
    pipelines: Mapping[str, Begin], passes: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], list[str]]:
    """Return the seconds of every pass of each pipeline, after one that warms up, and their names."""
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(passes + 1):
        for name, begin in pipelines.items():
            start = clock()
            for _ in begin():
                pass
            seconds[name].append(clock() - start)
    return {name: times[1:] for name, times in seconds.items()}, list(pipelines)


def table(pipelines: Mapping[str, Begin], images: int, passes: int, clock: Callable[[], float]) -> None:
    """Print what each pipeline takes, and the ratio to the first, pass by pass."""
    seconds, names = measured(pipelines, passes, clock)
    print("| input pipeline | us per image: median (quartiles) | images/s | ratio to the first: median (quartiles) |")
    print("|---|---|---|---|")
    for name in names:
        times = [1e6 * value / images for value in seconds[name]]
        ratios = [value / first for value, first in zip(seconds[name], seconds[names[0]], strict=True)]
        print(f"| {name} | {_spread(times, 1)} | {1e6 / statistics.median(times):,.0f} | {_spread(ratios, 2)} |")


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def main() -> None:
    """Print a table of images in memory, by wall-clock, and one of image files, by CPU seconds of one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--files", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    shape = f"{CHANNELS}x{SIDE}x{SIDE}"
    print(f"{arguments.images} images of {shape}, batches of {arguments.batch_size}, 1 thread; {versions}\n")
    table(from_memory(arguments), arguments.images, arguments.passes, time.perf_counter)
    height, width = PHOTOGRAPH
    print(f"\n{arguments.files} JPEG files of {height}x{width}, {CROPPED} pixels out of {RESIZED}, one process\n")
    with tempfile.TemporaryDirectory() as folder:
        table(from_files(Path(folder), arguments.files), arguments.files, arguments.passes, time.process_time)


if __name__ == "__main__":
    main()
