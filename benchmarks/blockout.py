"""Cost of a Blockout layer compared with `Linear`, `Linear` + `Dropout` and a naive form, and of folded inference.

All forms take turns within one process, so that the ratios hold if the speed of the machine drifts. A step is forward
and backward with gradients for the input, the weight and the memberships of both sides; the draw of the memberships is
part of it. A second table compares the training step of whole networks, including the optimizer, with that of the same
networks without Blockout: with Dropout, or plain.

Run: ``python benchmarks/blockout.py [--device cuda] [--rounds 15]``; prints Markdown tables of median ratios with
quartiles.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.inception import InceptionSettings
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.data import Preprocessing, Splits
from nas_blockout.data.tensor_dataset import Labeled
from nas_blockout.devices import keep_freed_memory
from nas_blockout.experiment import Experiment, build
from nas_blockout.methods import method_from_json
from nas_blockout.methods.masking import lazily_masked, masked_weight
from nas_blockout.methods.random_masks import draw_memberships
from nas_blockout.training_protocol import trainable

CLUSTERS = 6
SIZES = (512, 1024, 2048, 4096)
BATCHES = (128, 512)
SIDE, CLASSES = 32, 100
CONVNET = ConvNetSettings((32, 64), (512, 512))
PAPER = InceptionSettings(hidden=(512, 512))  # two fully connected layers before the classes, as for CIFAR-100
RESNET = ModuleSettings("torchvision.models:resnet18")
DROPOUT, ALONE = {"name": "dropout"}, {"name": "none"}
BLOCKOUT = {"name": "blockout", "preset": "paper", "clusters": CLUSTERS}
COMPRESS = {"name": "blockout", "clusters": 4}  # with the terms of the loss of the preset
Whole = tuple[object, Mapping[str, object], Mapping[str, object], int]
WHOLE: Mapping[str, Whole] = {
    "inception, two layers of 512": (PAPER, DROPOUT, {**BLOCKOUT, "masked": "head"}, 16),
    "convnet, two layers of 512": (CONVNET, DROPOUT, {**BLOCKOUT, "masked": "head"}, 64),
    "convnet, all layers masked": (CONVNET, DROPOUT, {**BLOCKOUT, "masked": "all"}, 64),
    "resnet18, all layers masked": (RESNET, ALONE, COMPRESS, 64),
    "resnet18, masks of 0 and 1": (RESNET, ALONE, {**COMPRESS, "mask_values": "binary", "rescale": False}, 64),
}


def naive(x: Tensor, linear: nn.Linear, logits: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Eq. 4 as autograd writes it: mask, product and linear as separate operations."""
    p_out, p_in = (torch.sigmoid(value) for value in logits)
    c_out, c_in = (p * torch.bernoulli(p.detach(), generator=generator) / p.detach() for p in (p_out, p_in))
    return F.linear(x, linear.weight * (c_out @ c_in.T) / CLUSTERS, linear.bias)


def fused(x: Tensor, linear: nn.Linear, logits: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """The form that the package uses."""
    c_out, c_in = (draw_memberships(torch.sigmoid(value), generator) for value in logits)
    return F.linear(x, lazily_masked(linear.weight, c_out, c_in), linear.bias)


def forms(size: int, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Return one training step of every form, and inference of the plain and the folded layer."""
    generator = torch.Generator(device).manual_seed(0)
    linear = nn.Linear(size, size).to(device)
    x = torch.randn(batch, size, device=device, requires_grad=True)
    upstream = torch.randn(batch, size, device=device)
    logits = tuple(torch.zeros(size, CLUSTERS, device=device, requires_grad=True) for _ in range(2))
    dropout = nn.Dropout(0.5)
    with torch.no_grad():
        p = torch.full((size, CLUSTERS), 0.5, device=device)
        folded = nn.Linear(size, size).to(device)
        folded.weight.copy_(masked_weight(linear.weight, p, p))

    def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for tensor in (x, linear.weight, linear.bias, *logits):
                tensor.grad = None
            forward().backward(upstream)

        return run

    def infer(layer: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                layer(x)

        return run

    return {
        "Linear": step(lambda: linear(x)),
        "Linear + Dropout": step(lambda: dropout(linear(x))),
        "naive": step(lambda: naive(x, linear, logits, generator)),  # type: ignore[arg-type]  # always two
        "fused": step(lambda: fused(x, linear, logits, generator)),  # type: ignore[arg-type]  # always two
        "plain inference": infer(linear),
        "folded inference": infer(folded),
    }


def steps(
    name: str,
    device: str,
    *,
    side: int = SIDE,
    images: int | None = None,
    order: torch.memory_format = torch.contiguous_format,
) -> dict[str, Callable[[], None]]:
    """Return one whole training step of a network without Blockout, and of the same with Blockout in its layers."""
    backbone, without, with_masks, batch = WHOLE[name]
    batch, shape = images or batch, (3, side, side)
    raw = Labeled(torch.randint(256, (CLASSES, *shape), dtype=torch.uint8), torch.arange(CLASSES))
    preprocessing = Preprocessing(*shape, mean=(0.5,) * 3, std=(0.3,) * 3)
    part, names = raw.normalized(preprocessing), tuple(map(str, range(CLASSES)))
    splits = Splits(part, part, preprocessing=preprocessing, class_names=names, load_test=lambda: raw)
    x = torch.randn(batch, *shape, device=device).to(memory_format=order)
    y = torch.randint(CLASSES, (batch,), device=device)
    generator = torch.Generator(device).manual_seed(0)

    def step_of(method: Mapping[str, object]) -> Callable[[], None]:
        experiment = Experiment(backbone=backbone, method=method_from_json(method))
        model = trainable(build(experiment, splits).to(device)).train()
        model.to(memory_format=order)  # type: ignore[call-overload]  # its types do not know it
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            model.loss(x, y, generator).backward()
            optimizer.step()

        return run

    return {"without": step_of(without), "blockout": step_of(with_masks)}


def measure(runs: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return seconds of every form in every round, on a processor those that it works; the forms take turns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            _wait(device)
            began = clock()
            run()
            _wait(device)
            if turn >= 2:
                seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], form: str, baseline: str) -> str:
    """Return the median and quartiles of the ratio, round by round."""
    ratios = [a / b for a, b in zip(seconds[form], seconds[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} .. {high:.2f})"


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="of layers; none without a number")
    parser.add_argument("--whole", nargs="*", choices=WHOLE, default=list(WHOLE), help="networks; none without a name")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images of whole networks, in pixels")
    parser.add_argument("--images", type=int, help="of a step of whole networks; each has a number of its own")
    parser.add_argument("--channels-last", action="store_true", help="images and weights of whole networks")
    parser.add_argument("--give-back", action="store_true", help="freed memory, which workers keep")
    options = parser.parse_args()
    if not options.give_back:
        keep_freed_memory()
    order = torch.channels_last if options.channels_last else torch.contiguous_format
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name = (
        torch.cuda.get_device_name() if options.device != "cpu" else f"{platform.machine()}, {options.threads} thread"
    )
    print(f"torch {torch.__version__}, {name}, {options.rounds} rounds, {CLUSTERS} clusters\n")
    print("Median (quartiles) of ratios.\n")
    print(
        "| nodes | batch | fused / Linear | fused / (Linear + Dropout) | naive / (Linear + Dropout) | folded / plain |"
    )
    print("|---|---|---|---|---|---|")
    for size in options.sizes:
        for batch in BATCHES:
            seconds = measure(forms(size, batch, options.device), options.rounds, options.device)
            cells = (
                ratio(seconds, "fused", "Linear"),
                ratio(seconds, "fused", "Linear + Dropout"),
                ratio(seconds, "naive", "Linear + Dropout"),
                ratio(seconds, "folded inference", "plain inference"),
            )
            print(f"| {size} | {batch} | {' | '.join(cells)} |", flush=True)
    print("\n| whole training step | batch | against | blockout / that |\n|---|---|---|---|")
    for model in options.whole:
        _, without, _, batch = WHOLE[model]
        made = steps(model, options.device, side=options.side, images=options.images, order=order)
        seconds = measure(made, options.rounds, options.device)
        print(
            f"| {model} | {options.images or batch} | {without['name']} | {ratio(seconds, 'blockout', 'without')} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
