"""Times of operations: measures the constants with which `nas_blockout.backbones.inference_cost` predicts times.

Single operations of many shapes are timed, for one image and for 256, in rounds of random order, as CPU time of the
only thread that computes. The constants are a non-negative least-squares fit of relative errors to a sum: a call,
numbers read, numbers written, multiply-accumulates, and for groups more of the first and the last.

An operation alone does not take the same time as among others: with ``--networks``, and in onnxruntime always, whole
networks are timed, `split`, `whole` and `summed`, and the constants of convolutions and copies are those by which the
builder's own sum comes nearest. The builder keeps its constants, so that a network is always divided in the same way;
this benchmark shows whether they still hold.

Run: ``python -m benchmarks.division [--rounds N] [--networks] [--runtime onnxruntime]``; prints a Markdown table with
one line for each kind of operation.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from benchmarks.branched import PARENTS, SHAPE, onnx_of, variant
from nas_blockout.backbones.branched import BranchedNetwork, BranchedStage
from nas_blockout.backbones.inference import image_places
from nas_blockout.backbones.inference_cost import (
    BATCHES,
    LANES,
    Costs,
    Form,
    Rates,
    Runtime,
    cut_for_readers,
    expected_times,
)

PAGED = 2**23  # numbers: as much memory comes page by page from the system, which `FusedNetwork` avoids
SINGLE = ("call", "call in groups", "pieces")
CONVOLUTIONS = [
    *product([(3, 16), (3, 32), (3, 64)], [1], [32]),
    *product([(16, 16), (16, 112), (48, 32), (32, 64), (48, 112), (64, 128)], [1], [16]),
    *product([(32, 32), (32, 224), (112, 32), (64, 128), (112, 224), (128, 256)], [1], [8]),
    *product([(48, 112), (32, 64), (96, 192), (48, 96)], [2, 4, 8], [16]),
    *product([(112, 224), (64, 128), (192, 384), (96, 192)], [2, 4, 8], [8]),
]
PRODUCTS = list(product([(64, 128), (128, 256), (256, 512), (512, 512), (512, 16)], [1, 4, 8], [1]))
FOLLOWED = list(product([(16, 16), (32, 32), (64, 64), (112, 112), (128, 128)], [1], [8, 16, 32]))
ADDED = list(product([(32, 64), (64, 80), (112, 144), (128, 256)], [1], [8, 16]))


COPIED = list(product([(32, 0), (64, 0), (96, 0), (128, 0)], [1, 2, 4, 8], [8, 16]))


@dataclass(frozen=True, slots=True)
class Case:
    """One operation: what it is, how many channels it reads and writes, in groups, at `side` squared positions."""

    kind: str
    inputs: int
    outputs: int
    groups: int
    side: int

    def run(self, batch: int) -> Callable[[], object]:
        """Return it as a function of nothing."""
        x = torch.randn(batch, self.inputs, self.side, self.side).contiguous(memory_format=torch.channels_last)
        if self.kind == "convolution":
            weight = torch.randn(self.outputs, self.inputs // self.groups, 3, 3)
            weight, bias = weight.contiguous(memory_format=torch.channels_last), torch.randn(self.outputs)
            return lambda: F.conv2d(x, weight, bias, padding=1, groups=self.groups)
        if self.kind == "product":
            return self._product(x.flatten(1))
        if self.kind == "followed":
            return lambda: F.relu(F.max_pool2d(x, 2), inplace=True)
        if self.kind == "added":
            y = torch.randn_like(x)
            return lambda: y.add_(x)
        own, half = self.inputs // 2 // self.groups, self.inputs // 2
        starts = [start for group in range(self.groups) for start in ((group * own, own), (half, half))]
        return lambda: torch.cat([x.narrow(1, *each) for each in starts], 1)

    def _product(self, x: Tensor) -> Callable[[], object]:
        weight, bias = torch.randn(self.outputs, self.inputs // self.groups), torch.randn(self.outputs)
        if self.groups == 1:
            return lambda: F.linear(x, weight, bias)
        weights = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        biases = bias.unflatten(0, (self.groups, 1, -1))
        split = lambda: x.unflatten(1, (self.groups, -1)).transpose(0, 1)  # noqa: E731  # a view, made in each run
        return lambda: torch.baddbmm(biases, split(), weights).transpose(0, 1).flatten(1)

    def counts(self, batch: int) -> dict[str, float]:
        """Return what the time is a sum of."""
        used = batch * self.side**2
        if self.kind == "added":
            return {"call": 1.0, "read": float(used * self.inputs)}
        if self.kind == "followed":
            indices = used * self.inputs / 2  # of eight bytes, for a quarter of the numbers
            return {"call": 1.0, "read": float(used * self.inputs), "paged": indices * (indices >= PAGED)}
        if self.kind == "copied":  # half of it own, half for every group
            copied = used * self.inputs * (1 + self.groups) / 2
            pieces = 2.0 * self.groups
            at_positions = {"pieces": pieces, "pieces at positions": used * pieces}
            return {"call": 1.0, **at_positions, "written": copied, "paged": copied * (copied >= PAGED)}
        lanes, window = (LANES, 9) if self.kind == "convolution" else (1, 1)
        rows, written = -(-self.outputs // self.groups // lanes) * lanes, float(used * self.outputs)
        macs, grouped = float(used * rows * self.inputs * window), float(self.groups > 1)
        counts = {"call": 1.0, "read": float(used * self.inputs), "written": written, "macs": macs}
        return counts | {
            "paged": written * (written >= PAGED),
            "call in groups": grouped,
            "macs in groups": grouped * macs,
        }


def cases() -> list[Case]:
    """Return all operations that are timed."""
    shapes = {
        "convolution": CONVOLUTIONS,
        "product": PRODUCTS,
        "followed": FOLLOWED,
        "added": ADDED,
        "copied": COPIED,
    }
    return [
        Case(kind, inputs, outputs, groups, side)
        for kind, sizes in shapes.items()
        for (inputs, outputs), groups, side in sizes
    ]


def timed(cases: Sequence[Case], batch: int, rounds: int) -> dict[Case, float]:
    """Return the lower quartile of the microseconds of each operation, in rounds of random order.

    None is run twice in a row, so that code and weights are as far from the processor as they are in a network.
    """
    runs, seconds = {case: case.run(batch) for case in cases}, {case: list[float]() for case in cases}
    draws = random.Random(0)  # an order, not a secret
    for _ in range(rounds + 1):
        for case in draws.sample(cases, len(cases)):
            began = time.thread_time()
            runs[case]()
            seconds[case].append(time.thread_time() - began)
    return {case: statistics.quantiles(each[1:], n=4)[0] * 1e6 for case, each in seconds.items()}


def fitted(times: Mapping[Case, float], batch: int) -> tuple[dict[str, float], float]:
    """Return the microseconds of a unit of each count, and the median relative error."""
    counts = [case.counts(batch) for case in times]
    measured = np.array(list(times.values()))
    design = np.array([list(each.values()) for each in counts]) / measured[:, None]
    scale = np.maximum(design.max(0), np.finfo(float).tiny)
    units, _ = nnls(design / scale, np.ones(len(measured)))
    error = float(np.median(np.abs(design / scale @ units - 1)))
    return dict(zip(counts[0], units / scale, strict=True)), error


def unit_costs() -> dict[str, Costs]:
    """Return costs of which one is a microsecond and all others are nothing, by its name."""
    none = Rates(0.0)
    free = Costs(
        {4: (none, none), 2: (none, none)}, {4: (none, none), 2: (none, none)}, (none, none), (none, none), 0.0
    )
    costs = {}
    for name in ("call", "written", "macs", "call_in_groups", "macs_in_groups"):
        one = replace(none, **{name: 1.0})
        costs[f"convolution {name}"] = replace(free, term={4: (one, one), 2: (none, none)})
    for name in ("call", "read", "written"):
        one = replace(none, **{name: 1.0})
        costs[f"copied {name}"] = replace(free, copied=(one, one))
    one = Rates(1.0)
    return costs | {"product call": replace(free, term={4: (none, none), 2: (one, one)})}


def networks(runtime: Runtime, rounds: int) -> tuple[list[list[tuple[float, ...]]], list[list[float]]]:
    """Return, for branched networks in each form, the counts of unit costs and the microseconds, by batch size."""
    units, counts, times = unit_costs(), [], []
    for parent, kind, branches, share in product(("small", "large"), ("trunk", "shared"), (2, 8), (0.6, 0.4)):
        plan = PARENTS[parent]
        network = BranchedNetwork(plan, variant(parent, kind, branches, share).architecture, channels=SHAPE[0]).eval()
        stages = [stage for stage in network.stages.values() if isinstance(stage, BranchedStage)]
        layers = cut_for_readers([stage.folded() for stage in stages])
        for form in get_args(Form):
            fused, forms = network.for_inference(operations=form), [form] * len(layers)
            run = onnx_of(fused) if runtime == "onnxruntime" else fused
            counts.append([expected_times(layers, image_places(SHAPE[0]), forms, each) for each in units.values()])
            times.append([_quartile(run, batch, rounds * (10 if batch == 1 else 1)) for batch in BATCHES])
    return counts, times


def _quartile(run: Callable[[Tensor], object], batch: int, rounds: int) -> float:
    images, seconds = torch.rand(batch, *SHAPE), []
    for _ in range(rounds + 1):
        began = time.thread_time()
        run(images)
        seconds.append(time.thread_time() - began)
    return statistics.quantiles(seconds[1:], n=4)[0] * 1e6


def of_networks(runtime: Runtime, rounds: int) -> None:
    """Time whole networks in a runtime and print the constants."""
    counts, times = networks(runtime, rounds)
    for index, batch in enumerate(BATCHES):
        measured = np.array(times)[:, index]
        design = np.array(counts)[:, :, index] / measured[:, None]
        scale = np.maximum(design.max(0), np.finfo(float).tiny)
        coefficients, _ = nnls(design / scale, np.ones(len(measured)))
        error = float(np.median(np.abs(design / scale @ coefficients - 1)))
        named = dict(zip(unit_costs(), coefficients / scale, strict=True))
        calls = [f"{value:.1f} {name}" for name, value in named.items() if "call" in name]
        others = [f"{value * 1e6:.2f} {name}" for name, value in named.items() if "call" not in name]
        print(f"| networks | {batch} | {len(times)} | {', '.join(calls)} | {', '.join(others)} | {error:.0%} |")


def main() -> None:
    """Time all operations and print the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds at batch 256; ten times as many at batch 1")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="torch")
    parser.add_argument("--networks", action="store_true", help="time whole networks instead of operations")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, for quartiles, got {options.rounds}")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, one thread, {options.rounds} rounds, load average {os.getloadavg()[0]:.1f}\n")
    print(
        "| operation | batch | calls | microseconds per call | per million of each other | median error |\n"
        "|---|---|---|---|---|---|"
    )
    if options.networks or options.runtime == "onnxruntime":
        of_networks(options.runtime, options.rounds)
        return
    measured = cases()
    times = {batch: timed(measured, batch, options.rounds * (10 if batch == 1 else 1)) for batch in BATCHES}
    for kind, batch in product(dict.fromkeys(case.kind for case in measured), BATCHES):
        of_kind = {case: taken for case, taken in times[batch].items() if case.kind == kind}
        units, error = fitted(of_kind, batch)
        calls = [f"{value:.1f} {name}" for name, value in units.items() if name in SINGLE]
        others = [f"{value * 1e6:.2f} {name}" for name, value in units.items() if name not in SINGLE]
        print(f"| {kind} | {batch} | {len(of_kind)} | {', '.join(calls)} | {', '.join(others)} | {error:.0%} |")


if __name__ == "__main__":
    main()
