"""What bfloat16 costs in accuracy, and what a step asks of the host, for every method.

``accuracy`` trains every method on digits in float32 and in bfloat16 (autocast on the processor), the seeds paired, and
gives the differences of the test accuracies with 95% intervals of Student's t. ``counts`` gives for a training step the
operations that it dispatches, for an epoch how often the host reads a value of a tensor, and for a compiled step the
graphs and the breaks between them.

Run: ``python -m benchmarks.precision accuracy [--seeds 3] [--epochs 12] [--csv FILE]`` or ``... counts``.
"""

import argparse
import csv
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.backbones.resnet import ResNetSettings
from nas_blockout.data import DataSettings, Loader, load
from nas_blockout.experiment import EVALUATION_BATCH, Experiment
from nas_blockout.experiment.builder import build
from nas_blockout.methods import METHODS, method_from_json
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.randomness.draws import DrawCounter, DrawsBefore
from nas_blockout.training import Loaders, TrainingSettings, evaluate, fit
from nas_blockout.training_protocol import TrainableLayer, TrainableModel, trainable

READS = ("_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "bincount", "is_nonzero")
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # of Student's t, 97.5%


@dataclass(frozen=True, slots=True)
class Row:
    """One training: its test accuracy in [0, 1]."""

    method: str
    seed: int
    precision: str
    test_accuracy: float


class Dispatched(TorchDispatchMode):
    """Counts the operations that reach PyTorch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """How many of them make the host wait for a value."""
        return sum(self.counts[name] for name in READS)


def experiment_of(method: str, *, seed: int, training: TrainingSettings) -> Experiment:
    """Return the training of a method with its default settings on digits."""
    settings = method_from_json({"name": method})
    if isinstance(settings, BlockDropSettings):
        backbone: Any = ResNetSettings(depth=8, width=0.25)
    else:
        backbone = ConvNetSettings(normalize_logits=isinstance(settings, BlockoutSettings))
    return Experiment(DataSettings("digits"), backbone, settings, training, seed)


def accuracies(seeds: int, epochs: int) -> Iterator[Row]:
    """Train every method with every seed in both precisions, in turns."""
    splits = load(DataSettings("digits"))
    for seed in range(seeds):
        for method in METHODS:
            for precision in ("float32", "bf16"):
                training = TrainingSettings(epochs=epochs, precision=precision)  # type: ignore[arg-type]
                experiment = experiment_of(method, seed=seed, training=training)
                model = build(experiment, splits)
                loaders = Loaders(*(Loader(part, training.batch_size) for part in (splits.train, splits.validation)))
                for record in fit(model, loaders, training, seed=seed):
                    if record.failure:
                        raise RuntimeError(f"{method}, seed {seed}, {precision}: {record.failure}")
                test = evaluate(model, Loader(splits.test(), EVALUATION_BATCH), precision=training.precision)
                yield Row(method, seed, precision, test.accuracy)


def differences(rows: list[Row]) -> Iterator[str]:
    """Yield a Markdown table of accuracies and paired differences, in percentage points."""
    yield "| method | float32, % | bfloat16, % | difference, points | 95% interval |"
    yield "|---|---:|---:|---:|---|"
    for method in dict.fromkeys(row.method for row in rows):
        by: Mapping[str, dict[int, float]] = {"float32": {}, "bf16": {}}
        for row in rows:
            if row.method == method:
                by[row.precision][row.seed] = 100 * row.test_accuracy
        seeds = sorted(by["float32"].keys() & by["bf16"].keys())
        gaps = [by["bf16"][seed] - by["float32"][seed] for seed in seeds]
        half = QUANTILES[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        mean = statistics.fmean(gaps)
        means = [statistics.fmean(values.values()) for values in by.values()]
        yield f"| {method} | {means[0]:.2f} | {means[1]:.2f} | {mean:+.2f} | {mean - half:+.2f} to {mean + half:+.2f} |"


def counted(method: str) -> str:
    """Return a row of the table of counts."""
    training = TrainingSettings(epochs=2)
    splits = load(DataSettings("digits"))
    model = trainable(build(experiment_of(method, seed=0, training=training), splits)).train()
    x, y = next(iter(Loader(splits.train, training.batch_size).batches(torch.Generator().manual_seed(0))))
    _ready(model, x)
    with Dispatched() as step:
        model.loss(x, y, torch.Generator().manual_seed(0)).backward()
    other = build(experiment_of(method, seed=0, training=replace(training, epochs=1)), splits)
    loaders = Loaders(*(Loader(part, training.batch_size) for part in (splits.train, splits.validation)))
    with Dispatched() as epoch:
        list(fit(other, loaders, replace(training, epochs=1), seed=0))
    graphs, breaks = _graphs(model, x, y)
    return f"| {method} | {sum(step.counts.values())} | {step.reads} | {epoch.reads} | {graphs} | {breaks} |"


def _ready(model: TrainableModel, x: torch.Tensor) -> None:
    layers = [module for module in model.modules() if isinstance(module, TrainableLayer)]
    for layer in layers:
        layer.prepare_epoch(1, 2)
    if any(layer.needs_calibration for layer in layers):
        model.eval()(x)
        model.train()


def _graphs(model: TrainableModel, x: torch.Tensor, y: torch.Tensor) -> tuple[int, int]:
    """Return in how many graphs a step is compiled, and how many breaks there are between them."""
    counter = DrawCounter()
    model.loss(x, y, counter)
    bits, uniforms = counter.drawn(torch.Generator().manual_seed(0), x.device)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda x, y, b, u: model.loss(x, y, DrawsBefore(b, u)))(x, y, bits, uniforms)
    return explained.graph_count, explained.graph_break_count


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("accuracy", "counts"))
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(QUANTILES))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--csv", type=Path, help="also write every training to this file")
    arguments = parser.parse_args()
    if arguments.table == "counts":
        print("| method | operations a step | reads a step | reads an epoch | graphs | breaks |")
        print("|---|---:|---:|---:|---:|---:|")
        for method in METHODS:
            print(counted(method), flush=True)
        return
    rows = []
    for row in accuracies(arguments.seeds, arguments.epochs):
        rows.append(row)
        print(*(getattr(row, name) for name in row.__slots__), file=sys.stderr, flush=True)
    print("\n".join(differences(rows)))
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Row.__slots__)
            writer.writerows([getattr(row, name) for name in Row.__slots__] for row in rows)


if __name__ == "__main__":
    main()
