"""Is a branched network faster where it is smaller? The time saved over the multiply-accumulates saved.

Two convnets on 3x32x32 images are the dense parents: ``small`` with 32, 64 and 128 channels and 256 hidden nodes,
``large`` with twice as many of each. Their branched variants have 2, 4 or 8 branches and 60, 40 or 25% of the parent's
multiply-accumulates, and no layer is wider than the parent's. Two kinds: with a ``trunk`` of layers before the first
branches, which are disjoint from there on; or with nodes in every layer that are ``shared`` by all branches, at least
an eighth of them, as distilled networks have. Layers are thinned as little as the multiply-accumulates allow.
Forms: ``eager`` is `for_inference` of the trained network, ``exported`` the .pt2 program of that, ``onnx`` the same in
onnxruntime. The parent always has the same form. Weights are random.

A figure is the ratio of the lower quartiles over passes of both networks, which take turns, in seconds of processor
time of the one thread that computes: what else runs on the machine is not counted, though it disturbs.

Run: ``python -m benchmarks.branched [--rounds N] [--parents small large]``; prints Markdown tables. With ``--csv FILE``
the rows go there.
"""

import argparse
import csv
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, Stage, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages

SHAPE, CLASSES = (3, 32, 32), 10
PARENTS = {
    "small": stages(ConvNetSettings((32, 64, 128), (256,)), SHAPE, CLASSES),
    "large": stages(ConvNetSettings((64, 128, 256), (512,)), SHAPE, CLASSES),
}
FORMS = ("eager", "exported", "onnx")
BATCHES = (1, 256)
TARGET = 0.7
COLUMNS = ("parent", "kind", "branches", "macs", *(f"{form} {batch}" for batch in BATCHES for form in FORMS))

Run = Callable[[Tensor], object]


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
    fused = network.for_inference()
    example = torch.zeros(2, *SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(fused, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        saved, graph = io.BytesIO(), io.BytesIO()
        torch.export.save(program, saved)
        exported = torch.onnx.export(program, (example,), dynamo=True, verbose=False, input_names=["images"])
    assert exported is not None
    graph.write(exported.model_proto.SerializeToString())
    return {
        "eager": fused,
        "exported": torch.export.load(io.BytesIO(saved.getvalue())).module(),
        "onnx": _session(graph.getvalue()),
    }


def _session(content: bytes) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def ratio(parent: Run, network: Run, images: Tensor, rounds: int) -> float:
    """Return the time of `network` as a share of the time of `parent`."""
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(rounds + 2):
        for index in (0, 1) if number % 2 else (1, 0):
            began = time.thread_time()
            (parent, network)[index](images)
            seconds[index].append(time.thread_time() - began)
    of_parent, of_network = (statistics.quantiles(found[2:], n=4)[0] for found in seconds)
    return of_network / of_parent


def measured(parent: Mapping[str, Run], each: Variant, rounds: int) -> list[object]:
    """Return the row of one variant: its time as a share of the parent's, by batch and form."""
    networks = forms_of(PARENTS[each.parent], each.architecture)
    row: list[object] = [each.parent, each.kind, each.branches, round(each.share, 4)]
    for batch in BATCHES:
        images = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
        times = rounds * (20 if batch == 1 else 1)
        row += [round(ratio(parent[form], networks[form], images, times), 4) for form in FORMS]
    return row


def tables(rows: Sequence[Sequence[object]]) -> str:
    """Return the rows as Markdown: for each form, time left, and time saved over MACs saved."""
    lines = ["| parent | kind | branches | MACs left | " + " | ".join(COLUMNS[4:]) + " |"]
    lines.append("|---" * len(COLUMNS) + "|")
    for parent, kind, branches, share, *times in rows:
        saved = [f"{t:.0%} ({(1 - t) / (1 - share):.2f})" for t in times]  # type: ignore[operator]  # numbers
        lines.append(f"| {parent} | {kind} | {branches} | {share:.1%} | " + " | ".join(saved) + " |")
    lines += [
        "",
        "| parent | kind | form and batch | least ratio | median | at least .7 | slower than the parent |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in dict.fromkeys((row[0], row[1]) for row in rows):
        own = [row for row in rows if (row[0], row[1]) == family]
        for index, name in enumerate(COLUMNS[4:], 4):
            ratios = [(1 - row[index]) / (1 - row[3]) for row in own]  # type: ignore[operator]  # numbers
            slower, met = sum(ratio < 0 for ratio in ratios), sum(ratio >= TARGET for ratio in ratios)
            least, middle = min(ratios), statistics.median(ratios)
            lines.append(
                f"| {' | '.join(map(str, family))} | {name} | {least:.2f} | {middle:.2f} "
                f"| {met} of {len(ratios)} | {slower} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure all variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=7, help="pairs of passes at batch 256; 20 times as many at batch 1"
    )
    parser.add_argument("--parents", nargs="+", choices=list(PARENTS), default=list(PARENTS))
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows, load = [], os.getloadavg()[0]
    for parent in options.parents:
        dense = forms_of(PARENTS[parent], dense_of(PARENTS[parent]))
        for kind, branches, target in product(("trunk", "shared"), (2, 4, 8), (0.6, 0.4, 0.25)):
            rows.append(measured(dense, variant(parent, kind, branches, target), options.rounds))
            print(*rows[-1], file=sys.stderr, flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread, {options.rounds} rounds; load"
    )
    print(f"average {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
