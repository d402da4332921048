"""Speed of the training loop compared with a minimal hand-written one: ``python benchmarks/loop.py``.

Both train the same convolutional network on the same images with the same optimizer. The minimal loop only shuffles and
steps; ours also follows the schedule, sums the loss, validates (here on two images) and yields a record with a
checkpoint. The two alternate epoch by epoch, so that a busy machine slows both; the ratio is what counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from nas_blockout.data import AnyPart, DataSettings, Loader, Splits, load
from nas_blockout.data.tensor_dataset import Part
from nas_blockout.experiment import Experiment, build
from nas_blockout.methods import method_from_json
from nas_blockout.training import Loaders, TrainingSettings, fit
from nas_blockout.training_protocol import trainable

BATCHES = (32, 128)
METHODS = ("none", "dropout", "blockout")


def bare(model: nn.Module, part: AnyPart, settings: TrainingSettings) -> Callable[[], None]:
    """Return a function that trains one epoch with the minimal loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(0)
    learner = trainable(model)
    images = part.images[:]  # normalized in advance, which a minimal loop would do

    def epoch() -> None:
        model.train()
        for index in torch.randperm(len(part.labels), generator=generator).split(settings.batch_size):
            x, y = images[index], part.labels[index]
            loss = learner.loss(x, y, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def ours(model: nn.Module, part: AnyPart, splits: Splits, settings: TrainingSettings) -> Callable[[], None]:
    """Return a function that trains one epoch with our loop."""
    few = Part(splits.validation.images[:2], splits.validation.labels[:2])
    records = fit(model, Loaders(Loader(part, settings.batch_size), Loader(few, 2)), settings, seed=0)
    return lambda: (next(records), None)[1]


def seconds(work: Callable[[], None]) -> float:
    """Return the seconds that a function takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DataSettings(options.data, train_samples=options.samples)
    splits = load(data)
    print(f"{options.data}, {options.samples} images, {options.epochs} epochs, torch {torch.__version__}, one thread\n")
    print(
        "| method | batch | minimal loop, images per second | ours / minimal: median (quartiles) |\n|---|---|---|---|"
    )
    for name in METHODS:
        for batch in BATCHES:
            settings = TrainingSettings(epochs=options.epochs + 1, batch_size=batch)
            experiment = Experiment(data=data, method=method_from_json({"name": name}), training=settings)
            first = bare(build(experiment, splits), splits.train, settings)
            second = ours(build(experiment, splits), splits.train, splits, settings)
            first(), second()  # the first epoch warms up
            times = [(seconds(first), seconds(second)) for _ in range(options.epochs)]
            low, middle, high = statistics.quantiles([by_hand / loop for by_hand, loop in times], n=4)
            rate = options.samples / statistics.median(by_hand for by_hand, _ in times)
            print(f"| {name} | {batch} | {rate:,.0f} | {middle:.3f} ({low:.3f} .. {high:.3f}) |", flush=True)


if __name__ == "__main__":
    main()
