"""Cost of the dropping layers compared with torch's and torchvision's, of clustering, and of both in a training.

All variants take turns within one process, so that ratios hold if the speed of the machine drifts. A step of a layer is
forward and backward with the gradient of the input, including the random draw.

Run: ``python benchmarks/dropcluster.py [--device cuda] [--rounds 31]``; prints Markdown tables of medians with
quartiles.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones import BACKBONES
from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Loader, load
from nas_blockout.experiment import Experiment, build
from nas_blockout.lazy_torchvision import torchvision
from nas_blockout.methods.dropblock import DropBlock, DropBlockSettings
from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings
from nas_blockout.methods.dropconnect import DropConnect, DropConnectSettings
from nas_blockout.methods.dropout import Dropout, DropoutSettings
from nas_blockout.methods.feature_clustering import descriptors, kmeans, rena
from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings
from nas_blockout.training import Loaders, TrainingSettings, fit

RATE = 0.1
BLOCK = 5
SHAPES = ((64, 32, 28, 28), (64, 64, 14, 14), (64, 128, 16, 16), (128, 256, 8, 8))
IMAGES = DropClusterSettings().images
LARGEST_MASK = 1 << 26  # entries of a mask a sample: 256 MiB in float32
TABLES = ("layers", "linear", "models", "clustering", "share")
Runs = dict[str, Callable[[], object]]


def images(shape: tuple[int, ...], device: str) -> Tensor:
    """Return rectified random maps with correlated neighbors, as after a convolution."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(*shape[:2], shape[2] + 4, shape[3] + 4, generator=generator)
    return torch.relu(F.avg_pool2d(noise, 5, stride=1) * 5).to(device)


def learned(settings: DropClusterSettings, shape: tuple[int, ...], device: str) -> DropCluster:
    """Return a layer with clusters, in training."""
    layer = DropCluster(settings).to(device)
    layer.learn(images((IMAGES, *shape[1:]), device))
    return layer.train()


def layer_steps(shape: tuple[int, ...], device: str) -> Runs:
    """Return a step of every layer on maps of a shape."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn(shape, device=device)

    def step(forward: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            forward(x).backward(upstream)

        return run

    ours: dict[str, nn.Module] = {
        "dropout": Dropout(DropoutSettings(RATE)),
        "spatial": SpatialDropout(SpatialDropoutSettings(RATE)),
        "DropBlock": DropBlock(DropBlockSettings(RATE, BLOCK)),
        "DropCluster": learned(DropClusterSettings(RATE), shape, device),
        "DropCluster, batch": learned(DropClusterSettings(RATE, masks="batch"), shape, device),
    }
    return {
        "x * 1": step(lambda x: x * 1.0),
        "F.dropout": step(lambda x: F.dropout(x, RATE)),
        "F.dropout2d": step(lambda x: F.dropout2d(x, RATE)),
        "drop_block2d": step(lambda x: torchvision.ops.drop_block2d(x, RATE, BLOCK)),
        **{name: step(lambda x, layer=layer: layer(x, generator)) for name, layer in ours.items()},
    }


def linear_steps(size: int, batch: int, device: str) -> Runs:
    """Return a step of a linear layer: plain, after dropout, and under DropConnect as we and as torch would draw it."""
    generator = torch.Generator(device).manual_seed(0)
    linear = nn.Linear(size, size).to(device)
    connect = DropConnect(DropConnectSettings(0.5, masks="batch"), linear)
    by_sample = DropConnect(DropConnectSettings(0.5), linear)
    x = torch.randn(batch, size, device=device, requires_grad=True)

    def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            x.grad = linear.weight.grad = linear.bias.grad = None
            forward().sum().backward()

        return run

    runs = {
        "Linear": step(lambda: linear(x)),
        "a mask a batch": step(lambda: connect(x, generator)),
        "F.dropout of the weight": step(lambda: F.linear(x, F.dropout(linear.weight, 0.5), linear.bias)),
    }
    if batch * size * size <= LARGEST_MASK:
        runs["a mask a sample"] = step(lambda: by_sample(x, generator))
    return runs


def model_steps(device: str) -> Runs:
    """Return a step of a small convolutional network, forward and backward, under every method of feature maps."""
    generator = torch.Generator(device).manual_seed(0)
    x, y = torch.randn(64, 1, 28, 28, device=device), torch.arange(64, device=device) % 10
    layers: dict[str, Callable[[], nn.Module] | None] = {
        "none": None,
        "DropBlock": lambda: DropBlock(DropBlockSettings(RATE, BLOCK)),
        "DropCluster": lambda: DropCluster(DropClusterSettings(RATE)),
        "drop_block2d": lambda: Torchvision(),
    }
    runs: Runs = {}
    for name, layer in layers.items():
        sites = Sites(maps=layer) if layer else Sites()
        model = BACKBONES["convnet"].build(ConvNetSettings((32, 64), (128,)), (1, 28, 28), 10, None, sites).to(device)
        for module in model.modules():
            if isinstance(module, DropCluster):
                module.prepare_epoch(0, 1)
        model.eval()(torch.randn(IMAGES, 1, 28, 28, device=device))

        model.train()

        def run(model: nn.Module = model) -> None:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(x, generator), y).backward()

        runs[name] = run
    return runs


class Torchvision(nn.Module):
    """torchvision's DropBlock with our signature."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return `x` with blocks dropped."""
        result: Tensor = torchvision.ops.drop_block2d(x, RATE, BLOCK, training=self.training)
        return result


def measure(runs: Runs, rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds of every run in every round, after two to warm up; the runs take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device != "cpu":
        torch.cuda.synchronize()


def ratio(seconds: dict[str, list[float]], form: str, baseline: str) -> str:
    """Return the median and the quartiles of the ratio, round by round."""
    ratios = [a / b for a, b in zip(seconds[form], seconds[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def print_layers(rounds: int, device: str) -> None:
    """Print the cost of a step of the layers on feature maps."""
    pairs = (
        ("DropCluster", "DropBlock"),
        ("DropCluster", "drop_block2d"),
        ("DropCluster, batch", "DropBlock"),
        ("DropBlock", "drop_block2d"),
        ("dropout", "F.dropout"),
        ("spatial", "F.dropout2d"),
        ("DropCluster", "x * 1"),
    )
    print(f"\nOne step of a layer, rate {RATE}, block size {BLOCK}. `drop_block2d` is torchvision's; `F` is torch's.\n")
    print(f"| maps | {' | '.join(f'{a} / {b}' for a, b in pairs)} | DropCluster ms |\n{'|---' * (len(pairs) + 2)}|")
    for shape in SHAPES:
        seconds = measure(layer_steps(shape, device), rounds, device)
        cells = [ratio(seconds, *pair) for pair in pairs]
        milliseconds = 1e3 * statistics.median(seconds["DropCluster"])
        print(f"| {'x'.join(map(str, shape))} | {' | '.join(cells)} | {milliseconds:.2f} |", flush=True)


def print_linear(rounds: int, device: str) -> None:
    """Print the cost of a step of DropConnect."""
    print("\nOne step of DropConnect, rate 0.5, one mask for the batch or for each sample.\n")
    print("| nodes | batch | batch / Linear | batch / F.dropout of the weight | sample / Linear |")
    print("|---|---|---|---|---|")
    for size, batch in ((64, 64), (512, 64), (512, 128), (2048, 128), (2048, 512)):
        seconds = measure(linear_steps(size, batch, device), rounds, device)
        by_sample = ratio(seconds, "a mask a sample", "Linear") if "a mask a sample" in seconds else "-"
        others = ("Linear", "F.dropout of the weight")
        cells = (*(ratio(seconds, "a mask a batch", other) for other in others), by_sample)
        print(f"| {size} | {batch} | {' | '.join(cells)} |", flush=True)


def print_models(rounds: int, device: str) -> None:
    """Print the cost of a whole model's step."""
    seconds = measure(model_steps(device), rounds, device)
    print("\nOne step of a whole model: 3x3 convolutions of 32 and 64 channels, 128 nodes, 64 images of 28x28.\n")
    print(
        "| DropCluster / none | DropCluster / DropBlock | DropBlock / none | drop_block2d / none |\n|---|---|---|---|"
    )
    pairs = (("DropCluster", "none"), ("DropCluster", "DropBlock"), ("DropBlock", "none"), ("drop_block2d", "none"))
    print(f"| {' | '.join(ratio(seconds, *pair) for pair in pairs)} |", flush=True)


def inertia(points: Tensor, labels: Tensor) -> float:
    """Return the sum of squared distances of positions to the means of their clusters, over all channels."""
    members = F.one_hot(labels).to(points)
    centers = members.transpose(1, 2) @ points / members.sum(1).clamp(min=1)[:, :, None]
    return float((points - members @ centers).square().sum())


def by_scikit_learn(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the label map that scikit-learn finds channel by channel."""
    labels = [KMeans(clusters, n_init=1, random_state=seed).fit(channel).labels_ for channel in points.cpu().numpy()]
    return torch.from_numpy(np.stack(labels)).long().to(points.device)


def print_clustering(rounds: int, device: str) -> None:
    """Print seconds and inertia of clustering."""
    print(f"\nClustering {IMAGES} images, 10 positions per cluster. `again` starts from the previous labels.\n")
    print(
        "| maps | scikit-learn s | ours / scikit-learn | inertia, ours / scikit-learn | again / scikit-learn "
        "| rena / scikit-learn |\n|---|---|---|---|---|---|"
    )
    for shape in SHAPES:
        points = descriptors(images((IMAGES, *shape[1:]), device))
        clusters, (height, width) = round(shape[2] * shape[3] / 10), shape[2:]
        seeds = iter(range(10**6))

        def ours(start: Tensor | None = None) -> Tensor:
            generator = torch.Generator(device).manual_seed(next(seeds))  # noqa: B023  # called before the next shape
            return kmeans(points, clusters, generator=generator, start=start)  # noqa: B023  # called before the next shape

        known = ours()
        runs: Runs = {
            "scikit-learn": lambda: by_scikit_learn(points, clusters, next(seeds)),  # noqa: B023  # called before the next shape
            "ours": ours,
            "again": lambda: ours(known),  # noqa: B023  # called before the next shape
            "rena": lambda: rena(points, clusters, height=height, width=width),  # noqa: B023  # called before the next shape
        }
        seconds = measure(runs, rounds, device)
        ratios = [inertia(points, ours()) / inertia(points, by_scikit_learn(points, clusters, n)) for n in range(3)]
        cells = (
            f"{statistics.median(seconds['scikit-learn']):.2f}",
            ratio(seconds, "ours", "scikit-learn"),
            f"{statistics.mean(ratios):.3f} (sd {statistics.stdev(ratios):.3f})",
            ratio(seconds, "again", "scikit-learn"),
            ratio(seconds, "rena", "scikit-learn"),
        )
        print(f"| {'x'.join(map(str, shape[1:]))} | {' | '.join(cells)} |", flush=True)


def print_share(data: str) -> None:
    """Print the share of training that clustering takes, in trainings of 2,000 images over 10 epochs.

    Clustering always reads the same number of images, so that its share of larger data follows.
    """
    print(f"\nClustering's share of training time, the model above, {data}, 10 epochs.\n")
    print("| clustering | update every | 2,000 images | 20,000 images, scaled |\n|---|---|---|---|")
    splits = load(DataSettings(data, train_samples=2000))
    training = TrainingSettings(epochs=10)
    loaders = Loaders(Loader(splits.train, training.batch_size), Loader(splits.validation, 512))
    for clustering, every in (("kmeans", 1), ("kmeans", 2), ("kmeans", 5), ("rena", 1), ("rena", 2)):
        settings = DropClusterSettings(clustering=clustering, update_every=every)  # type: ignore[arg-type]  # of the list
        experiment = Experiment(backbone=ConvNetSettings((32, 64), (128,)), method=settings)
        model = build(experiment, splits)
        layers = [module for module in model.modules() if isinstance(module, DropCluster)]
        began, clustering_seconds = time.perf_counter(), 0.0
        for _ in fit(model, loaders, training, seed=0):
            clustering_seconds += sum(layer.clustering_seconds for layer in layers)
        rest = time.perf_counter() - began - clustering_seconds
        shares = [clustering_seconds / (clustering_seconds + rest * factor) for factor in (1, 10)]
        print(f"| {clustering} | {every} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", default="fashion_mnist", help="data set of the last table")
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cpu = f"{platform.machine()}, {options.threads} thread"
    device = options.device
    name = cpu if device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}, {options.rounds} rounds (clustering: 5), median (quartiles) of ratios.")
    tables: dict[str, Callable[[], None]] = {
        "layers": lambda: print_layers(options.rounds, device),
        "linear": lambda: print_linear(options.rounds, device),
        "models": lambda: print_models(options.rounds, device),
        "clustering": lambda: print_clustering(5, device),
        "share": lambda: print_share(options.data),
    }
    for table in options.tables:
        tables[table]()


if __name__ == "__main__":
    main()
