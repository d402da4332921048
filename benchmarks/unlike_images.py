"""How well cheap scores tell images of another kind from those that a model was trained for.

A small network is trained on each of digits, Fashion-MNIST and glyphs. One half of its validation images, at least 240,
sets the threshold that 1% of them fall below; the others, the images of the other data sets and noise are scored.
Printed is, for each score, the AUROC, and the shares below the threshold: of the others, and of the held-out images of
the own kind (false alarms). "either" is what models are exported with: the energy or the image statistics, each at half
a percent. Test images are not read.

    python benchmarks/unlike_images.py --seeds 3
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.data import DataSettings, Loader, Splits, load
from nas_blockout.statistics.novelty import QUANTILE, energy, image_statistics, is_unlike, thresholds_of

EPOCHS = {"digits": 30, "fashion_mnist": 4, "glyphs": 8}
IMAGES = 500  # of each kind that is scored, at most
BATCH = 128


def main() -> None:
    """Train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--names", nargs="+", default=list(EPOCHS), help="data sets to train on")
    parser.add_argument("--seeds", type=int, default=3, help="networks for each data set")
    given = parser.parse_args()
    torch.set_num_threads(1)
    splits = {
        name: load(DataSettings(name, train_samples=None if name == "digits" else 3008), root=given.data)
        for name in EPOCHS
    }
    pictures = {name: _images(each) for name, each in splits.items()}
    print("trained on | scored against | score | AUROC | below threshold | false alarms")
    for name in given.names:
        each = splits[name]
        others = {other: images for other, images in pictures.items() if other != name}
        rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for seed in range(given.seeds):
            for key, values in _measured(each, pictures[name], others, name, seed).items():
                rows.setdefault(key, []).append(values)
        for (other, score), found in rows.items():
            columns = [mean(column) for column in zip(*found, strict=True)]
            print(f"{name} | {other} | {score} | " + " | ".join(f"{value:.3f}" for value in columns), flush=True)


def _images(splits: Splits) -> Tensor:
    """Return validation images in [0, 1], at random."""
    found = torch.cat([x for x, _ in Loader(splits.validation, BATCH).batches()])
    chosen = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[: 2 * IMAGES]]
    preprocessing = splits.preprocessing
    std, average = (torch.tensor(each).view(1, -1, 1, 1) for each in (preprocessing.std, preprocessing.mean))
    return (chosen * std + average).clamp(0, 1)


def _measured(
    splits: Splits, own: Tensor, others: Mapping[str, Tensor], name: str, seed: int
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return AUROC, share of the others below the threshold and false alarms, by what is scored and by score."""
    model = _trained(splits, EPOCHS[name], seed)
    preprocessing = splits.preprocessing
    shape = own.shape[1:]
    half = max(len(own) // 2, 240)  # of fewer than 200 images there are no thresholds
    generator = torch.Generator().manual_seed(seed)
    foreign = {
        **{other: F.interpolate(images, shape[1:], mode="bilinear")[:IMAGES] for other, images in others.items()},
        "noise": torch.rand(IMAGES, *shape, generator=generator),
        "inverted": 1 - own[half:],
    }
    std, average = (torch.tensor(each).view(1, -1, 1, 1) for each in (preprocessing.std, preprocessing.mean))

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model((part - average) / std) for part in images.split(BATCH)])

    scores = {
        "energy": lambda images: energy(logits(images)),
        "max logit": lambda images: logits(images).amax(1),
        "max probability": lambda images: logits(images).softmax(1).amax(1),
        "image statistics": _statistics(own[:half]),
    }
    known = thresholds_of(logits(own[:half]), image_statistics(own[:half]))
    assert known is not None, "validation images are too few"
    found = {}
    for other, images in foreign.items():
        alarms, marked = (float(is_unlike(logits(x), x, known).double().mean()) for x in (own[half:], images))
        found[other, "either"] = (float("nan"), marked, alarms)
    for score, function in scores.items():
        threshold = function(own[:half]).double().quantile(QUANTILE)
        held_out = function(own[half:])
        alarms = float((held_out < threshold).double().mean())
        for other, images in foreign.items():
            there = function(images)
            found[other, score] = (_auroc(held_out, there), float((there < threshold).double().mean()), alarms)
    return found


def _statistics(images: Tensor):  # type: ignore[no-untyped-def]  # a function of images
    """Return minus the Mahalanobis distance of the statistics of an image from those of images."""
    features = image_statistics
    known = features(images)
    center, precision = known.mean(0), torch.linalg.inv(torch.cov(known.T) + 1e-9 * torch.eye(3).double())
    return lambda of: -(((features(of) - center) @ precision) * (features(of) - center)).sum(1).sqrt()


def _auroc(inside: Tensor, outside: Tensor) -> float:
    """Return how often an image of the own kind scores higher than one of another; ties count half."""
    larger = (inside[:, None] > outside[None]).double() + 0.5 * (inside[:, None] == outside[None]).double()
    return float(larger.mean())


def _trained(splits: Splits, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    channels, height, width = splits.shape
    model = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, len(splits.class_names)),
    )  # fmt: skip
    pairs = list(Loader(splits.train, BATCH).batches())
    x, y = torch.cat([each for each, _ in pairs]), torch.cat([each for _, each in pairs])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = torch.cat([model(a).argmax(1) == b for a, b in Loader(splits.validation, BATCH).batches()])
    print(f"# seed {seed}: validation accuracy {right.double().mean():.3f}", flush=True)
    return model


if __name__ == "__main__":
    main()
