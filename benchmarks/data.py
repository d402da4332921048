"""Speed of our input pipeline compared with torchvision's on the same images: ``python benchmarks/data.py``.

Both shuffle, shift by up to an eighth of the side, flip and normalize. Ours does so on batches of tensors in memory;
torchvision's is the usual one: a data set of images, transforms for each image, and a DataLoader. They alternate within
one run, so that a busy machine slows both; the ratio is what counts.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nas_blockout.data import Loader, Part
from nas_blockout.lazy_torchvision import torchvision

MEAN, STD = 0.5, 0.25
CHANNELS, SIDE = 3, 32


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


def ours(images: Tensor, labels: Tensor, batch_size: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Return a function that starts a pass through our loader."""
    normalized = images.float().div(255).sub(MEAN).div(STD)
    loader = Loader(Part(normalized, labels, (-MEAN / STD,) * CHANNELS), batch_size, augment="shift-flip")
    generator = torch.Generator().manual_seed(0)
    return lambda: loader.batches(generator)


def theirs(images: Tensor, labels: Tensor, batch_size: int, workers: int) -> Callable[[], Iterable[list[Tensor]]]:
    """Return a function that starts a pass through torchvision's transforms and a DataLoader."""
    v2 = torchvision.transforms.v2
    transform = v2.Compose(
        [
            v2.RandomCrop(SIDE, padding=SIDE // 8),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([MEAN] * CHANNELS, [STD] * CHANNELS),
        ]
    )
    loader = DataLoader(
        Pictures(images, labels, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: loader


def seconds_of(begin: Callable[[], Iterable[Sequence[Tensor]]]) -> float:
    """Return the seconds that one pass takes."""
    start = time.perf_counter()
    for _ in begin():
        pass
    return time.perf_counter() - start


def main() -> None:
    """Print a table: seconds per pass, microseconds per image, and the ratio to ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (arguments.images, CHANNELS, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (arguments.images,), generator=generator)
    pipelines = {"ours": ours(images, labels, arguments.batch_size)} | {
        f"DataLoader, {workers} workers": theirs(images, labels, arguments.batch_size, workers) for workers in (0, 2)
    }
    seconds = {name: [seconds_of(begin)] for name, begin in pipelines.items()}  # the first pass warms up
    for _ in range(arguments.passes):
        for name, begin in pipelines.items():
            seconds[name].append(seconds_of(begin))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    shape = f"{CHANNELS}x{SIDE}x{SIDE}"
    print(f"{arguments.images} images of {shape}, batches of {arguments.batch_size}, 1 thread; {versions}")
    print(
        f"| input pipeline | seconds per pass: median of {arguments.passes} (min, max) | us per image | ratio to ours |"
    )
    print("|---|---|---|---|")
    our_seconds = statistics.median(seconds["ours"][1:])
    for name, times in seconds.items():
        median, least, most = statistics.median(times[1:]), min(times[1:]), max(times[1:])
        per_image = 1e6 * median / arguments.images
        print(f"| {name} | {median:.3f} ({least:.3f}, {most:.3f}) | {per_image:.1f} | {median / our_seconds:.1f} |")


if __name__ == "__main__":
    main()
