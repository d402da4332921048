"""Is a branched network faster where it is smaller? The time saved over the multiply-accumulates saved.

Two convnets on 3x32x32 images are the dense parents: ``small`` with 32, 64 and 128 channels and 256 hidden nodes,
``large`` with twice as many of each. Their branched variants have 2, 4 or 8 branches and 60, 40 or 25% of the parent's
multiply-accumulates, and no layer is wider than the parent's. Two kinds: with a ``trunk`` of layers before the first
branches, which are disjoint from there on; or with nodes in every layer that are ``shared`` by all branches, at least
an eighth of them, as distilled networks have. Layers are thinned as little as the multiply-accumulates allow.
Forms: ``eager`` is `for_inference` of the trained network, ``exported`` the .pt2 program of that, ``onnx`` that of
``runtime="onnxruntime"`` in onnxruntime. The parent always has the same form. Weights are random.

A figure is the ratio of the lower quartiles over passes of both networks, in seconds of processor time of the one
thread that computes: what else runs on the machine is not counted, though it disturbs. In every round the parent, a
second copy of it, and the network pass in random order. The second copy, over the first, tells what chance does: the
``band`` of a parent, form and batch holds 95% of its ratios, one from each variant; a figure within it is no different
from the parent's.

Run: ``python -m benchmarks.branched [--rounds N] [--parents small large]``; prints Markdown. With ``--csv FILE`` the
rows go there; ``--read FILE`` reads such rows in place of measuring; with ``--page FILE`` what is printed replaces what
stands between the two marks of that page.
"""

import argparse
import csv
import io
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Stage, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages
from nas_blockout.backbones.fused import FusedNetwork

SHAPE, CLASSES = (3, 32, 32), 10
EXAMPLE = torch.zeros(2, *SHAPE)
PARENTS = {
    "small": stages(ConvNetSettings((32, 64, 128), (256,)), SHAPE, CLASSES),
    "large": stages(ConvNetSettings((64, 128, 256), (512,)), SHAPE, CLASSES),
}
FORMS = ("eager", "exported", "onnx")
BATCHES = (1, 256)
TARGET = 0.7
MARKS = ("<!-- measured -->", "<!-- end of what was measured -->")
FIGURES = tuple(f"{form} {batch}" for batch in BATCHES for form in FORMS)
COLUMNS = ("parent", "kind", "branches", "macs", *FIGURES, *(f"parent again {figure}" for figure in FIGURES))

Run = Callable[[Tensor], object]
Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Variant:
    """A branched network: its parent and kind, its number of branches, and the share of MACs that is left."""

    parent: str
    kind: str
    branches: int
    architecture: Architecture
    share: float


def structure(plan: Sequence[Stage], branches: int, trunk: int, shared: float, thin: float) -> Architecture:
    """Return an architecture of parallel branches of equal widths, no layer wider than the parent's.

    Args:
        plan: Stages of the parent.
        branches: Number of branches.
        trunk: Layers before the first branches, from the image on.
        shared: Least share of the nodes of each layer with branches that belongs to all of them.
        thin: Share of the parent's nodes that is left in each layer.
    """
    layers, everywhere = [], tuple(range(branches))
    for depth, stage in enumerate(plan[:-1]):
        width = round(stage.width * thin)
        private = 0 if depth < trunk else int(width * (1 - shared)) // branches
        groups = [Group((branch,), private) for branch in range(branches) if private]
        common = width - branches * private if shared or not private else 0
        layers.append(Layer(stage.name, (*groups, *([Group(everywhere, common)] if common else []))))
    labels = [tuple(label for label in range(CLASSES) if label % branches == b) for b in range(branches)]
    last = Layer("classes", tuple(Group((b,), len(held), held) for b, held in enumerate(labels) if held))
    return Architecture(branches, (*layers, last))


def variant(parent: str, kind: str, branches: int, target: float) -> Variant:
    """Return the architecture nearest to a share of the MACs, of the least thinned of those within a fiftieth."""
    plan = PARENTS[parent]
    dense, thins = macs_of(dense_of(plan), plan, SHAPE[0]), [step / 64 for step in range(16, 65)]
    if kind == "shared":
        settings = [(0, step / 32, thin) for step in range(4, 33) for thin in thins]
    else:
        settings = [(trunk, 0.0, thin) for trunk in range(len(plan) - 1) for thin in thins]
    found = []
    for trunk, shared, thin in settings:
        architecture = structure(plan, branches, trunk, shared, thin)
        share = macs_of(architecture, plan, SHAPE[0]) / dense
        far = abs(share - target)
        rank = (far > 0.02, -thin if far <= 0.02 else far, far)
        found.append((rank, Variant(parent, kind, branches, architecture, share)))
    return min(found, key=lambda pair: pair[0])[1]


def forms_of(plan: Sequence[Stage], architecture: Architecture) -> dict[str, Run]:
    """Return a network in every form, as functions of a batch of images."""
    torch.manual_seed(0)
    network = BranchedNetwork(plan, architecture, channels=SHAPE[0]).eval()
    eager, saved = network.for_inference(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(_program(eager), saved)
    return {
        "eager": eager,
        "exported": torch.export.load(io.BytesIO(saved.getvalue())).module(),
        "onnx": onnx_of(network.for_inference(runtime="onnxruntime")),
    }


def onnx_of(network: FusedNetwork) -> Run:
    """Return a network in onnxruntime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(_program(network), (EXAMPLE,), dynamo=True, verbose=False, input_names=["images"])
    assert exported is not None
    return _session(exported.model_proto.SerializeToString())


def _program(network: FusedNetwork) -> torch.export.ExportedProgram:
    return torch.export.export(network, (EXAMPLE,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _session(content: bytes) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def ratios(parent: Run, others: Sequence[Run], images: Tensor, rounds: int) -> list[float]:
    """Return the times of `others` as shares of the time of `parent`; in each round all pass in random order."""
    runs, draws = (parent, *others), random.Random(0)  # an order, not a secret
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for index in draws.sample(range(len(runs)), len(runs)):
            began = time.thread_time()
            runs[index](images)
            seconds[index].append(time.thread_time() - began)
    of_parent, *of_others = (statistics.quantiles(found[1:], n=4)[0] for found in seconds)
    return [each / of_parent for each in of_others]


def measured(parent: Mapping[str, Run], again: Mapping[str, Run], each: Variant, rounds: int) -> list[object]:
    """Return the row of one variant: its time as a share of the parent's, by batch and form, and that of a copy."""
    networks, of_copy = forms_of(PARENTS[each.parent], each.architecture), []
    row: list[object] = [each.parent, each.kind, each.branches, round(each.share, 4)]
    for batch in BATCHES:
        images = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
        times = rounds * (20 if batch == 1 else 1)
        for form in FORMS:
            of_network, once_more = ratios(parent[form], (networks[form], again[form]), images, times)
            row.append(round(of_network, 4))
            of_copy.append(round(once_more, 4))
    return [*row, *of_copy]


def bands(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return by parent and figure the interval that holds 95% of the ratios of the parent to its copy."""
    found = {}
    for parent, figure in product(dict.fromkeys(row["parent"] for row in rows), FIGURES):
        again = [float(row[f"parent again {figure}"]) for row in rows if row["parent"] == parent]
        low, high = np.quantile(again, [0.025, 0.975])
        found[parent, figure] = (float(low), float(high))
    return found


def summary(rows: Sequence[Row]) -> str:
    """Return the sentences that tell how many figures reach the target, and how many are slower than the parent."""
    band, saved, slower, beyond = bands(rows), [], [], []
    for row, figure in product(rows, FIGURES):
        left, share = float(row[figure]), float(row["macs"])
        saved.append((1 - left) / (1 - share))
        slower += [left] * (left > 1)
        beyond += [left] * (left > max(1.0, band[row["parent"], figure][1]))
    text = (
        f"**{sum(each >= TARGET for each in saved)} of {len(saved)} figures reach .7; {len(slower)} lie above the "
        f"parent's time, {len(beyond)} of them beyond what a second copy of the parent does"
    )
    return text + (f", the worst at {max(beyond):.0%} of it.**" if beyond else ".**")


def tables(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown: for each form, time left, and time saved over MACs saved; then families, bands."""
    lines = ["| parent | kind | branches | MACs left | " + " | ".join(FIGURES) + " |", "|---" * 10 + "|"]
    for row in rows:
        share = float(row["macs"])
        saved = [f"{float(row[f]):.0%} ({(1 - float(row[f])) / (1 - share):.2f})" for f in FIGURES]
        lines.append(f"| {row['parent']} | {row['kind']} | {row['branches']} | {share:.1%} | {' | '.join(saved)} |")
    lines += ["", "| parent | kind | form and batch | least ratio | median | at least .7 | slower | band | beyond it |"]
    lines.append("|---" * 9 + "|")
    band = bands(rows)
    for (parent, kind), figure in product(dict.fromkeys((row["parent"], row["kind"]) for row in rows), FIGURES):
        own = [row for row in rows if (row["parent"], row["kind"]) == (parent, kind)]
        found = [(1 - float(row[figure])) / (1 - float(row["macs"])) for row in own]
        (low, high), met = band[parent, figure], sum(each >= TARGET for each in found)
        beyond = sum(float(row[figure]) > max(1.0, high) for row in own)
        lines.append(
            f"| {parent} | {kind} | {figure} | {min(found):.2f} | {statistics.median(found):.2f} "
            f"| {met} of {len(found)} | {sum(each < 0 for each in found)} | {low:.1%} to {high:.1%} | {beyond} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all variants, or read what was measured, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="passes of each at batch 256; 20 times as many at batch 1"
    )
    parser.add_argument("--parents", nargs="+", choices=list(PARENTS), default=list(PARENTS))
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    parser.add_argument("--read", type=Path, help="rows that were written before")
    parser.add_argument("--page", type=Path, help="page to put the result in")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, for quartiles, got {options.rounds}")
    text = ""
    if options.read:
        with options.read.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        load = os.getloadavg()[0]
        rows = _measure(options.parents, options.rounds)
        text = (
            f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread, {options.rounds} rounds; "
            f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores.\n\n"
        )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    text = f"{summary(rows)}\n\n{text}{tables(rows)}"
    print(text)
    if options.page:
        before, _, rest = options.page.read_text().partition(MARKS[0])
        options.page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def _measure(parents: Sequence[str], rounds: int) -> list[dict[str, str]]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    found = []
    for parent in parents:
        dense, again = (forms_of(PARENTS[parent], dense_of(PARENTS[parent])) for _ in range(2))
        for kind, branches, target in product(("trunk", "shared"), (2, 4, 8), (0.6, 0.4, 0.25)):
            row = measured(dense, again, variant(parent, kind, branches, target), rounds)
            found.append(dict(zip(COLUMNS, map(str, row), strict=True)))
            print(*row, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
