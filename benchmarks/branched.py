"""Is a branched network faster where it is smaller? The time saved over the multiply-accumulates saved.

A convnet of 32, 64 and 128 channels and 256 hidden nodes on 3x32x32 images is the dense parent. Its branched variants
have 2, 4 or 8 branches from the second convolution on. So many nodes are shared by all branches, or all layers are made
so thin, that 60, 40 or 25% of the parent's multiply-accumulates are left; ``uneven`` ones have branches of widths 3:1.
Forms: ``trained`` is the network as it is trained, in eval mode; ``eager`` is `for_inference` of it, with batch
normalisation folded in; ``exported`` the .pt2 program of that, ``onnx`` the same in onnxruntime. The parent always has
the same form. Weights are random.

A figure is the median over rounds of the ratio of two passes that follow one another, one of each network, on one
thread: other load on the machine moves both.

Run: ``python benchmarks/branched.py [--rounds N]``; prints Markdown tables. With ``--csv FILE`` the rows go there.
"""

import argparse
import csv
import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import BranchedNetwork, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings, stages

SHAPE, CLASSES = (3, 32, 32), 10
STAGES = stages(ConvNetSettings((32, 64, 128), (256,)), SHAPE, CLASSES)
DENSE = macs_of(dense_of(STAGES), STAGES, SHAPE[0])
FORMS = ("trained", "eager", "exported", "onnx")
BATCHES = (1, 256)
TARGET = 0.7
COLUMNS = ("branches", "widths", "macs", *(f"{form} {batch}" for batch in BATCHES for form in FORMS))

Run = Callable[[Tensor], object]


@dataclass(frozen=True, slots=True)
class Variant:
    """A branched network: its number of branches, whether they are uneven, and the share of MACs that is left."""

    branches: int
    uneven: bool
    architecture: Architecture
    share: float


def structure(branches: int, shared: float, thin: float, *, uneven: bool) -> Architecture:
    """Return an architecture of parallel branches.

    Args:
        branches: Number of branches.
        shared: Share of each layer's nodes that belongs to all of them.
        thin: Share of the parent's nodes that is left in each layer.
        uneven: Whether every second branch has a third of the width of the others.
    """
    parts = [1.0 if not uneven or branch % 2 == 0 else 1 / 3 for branch in range(branches)]
    layers = []
    for stage in STAGES[1:-1]:
        common, private = round(stage.width * thin * shared), stage.width * thin * (1 - shared)
        groups = [Group((b,), max(1, round(private * part / sum(parts)))) for b, part in enumerate(parts)]
        everywhere = [Group(tuple(range(branches)), common)] if common else []
        layers.append(Layer(stage.name, (*groups, *everywhere)))
    labels = [tuple(label for label in range(CLASSES) if label % branches == b) for b in range(branches)]
    last = Layer("classes", tuple(Group((b,), len(held), held) for b, held in enumerate(labels) if held))
    return Architecture(branches, (*layers, last))


def variant(branches: int, target: float, *, uneven: bool) -> Variant:
    """Return the architecture nearest to a share of the MACs: with shared nodes, or else with thinner layers."""
    candidates = [structure(branches, step / 64, 1.0, uneven=uneven) for step in range(64)]
    candidates += [structure(branches, 0.0, step / 64, uneven=uneven) for step in range(16, 64)]
    costs = [macs_of(candidate, STAGES, SHAPE[0]) / DENSE for candidate in candidates]
    best = min(range(len(costs)), key=lambda index: abs(costs[index] - target))
    return Variant(branches, uneven, candidates[best], costs[best])


def forms_of(architecture: Architecture) -> dict[str, Run]:
    """Return a network in every form, as functions of a batch of images."""
    torch.manual_seed(0)
    network = BranchedNetwork(STAGES, architecture, channels=SHAPE[0]).eval()
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
        "trained": network,
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
    """Return the median over rounds of the time of `network` as a share of the time of `parent`."""
    found = []
    for number in range(rounds + 2):
        pair = [(parent, 0), (network, 1)][:: 1 if number % 2 else -1]
        seconds = [0.0, 0.0]
        for run, index in pair:
            began = time.perf_counter()
            run(images)
            seconds[index] = time.perf_counter() - began
        found.append(seconds[1] / seconds[0])
    return statistics.median(found[2:])


def measured(parents: Mapping[str, Run], each: Variant, rounds: int) -> list[object]:
    """Return the row of one variant: its time as a share of the parent's, by batch and form."""
    networks = forms_of(each.architecture)
    row: list[object] = [each.branches, "uneven" if each.uneven else "equal", round(each.share, 4)]
    for batch in BATCHES:
        images = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
        times = rounds * (20 if batch == 1 else 1)
        row += [round(ratio(parents[form], networks[form], images, times), 4) for form in FORMS]
    return row


def tables(rows: Sequence[Sequence[object]]) -> str:
    """Return the rows as Markdown: for each form, time left, and time saved over MACs saved."""
    lines = ["| branches | widths | MACs left | " + " | ".join(COLUMNS[3:]) + " |", "|---" * len(COLUMNS) + "|"]
    for branches, widths, share, *times in rows:
        saved = [f"{t:.0%} ({(1 - t) / (1 - share):.2f})" for t in times]  # type: ignore[operator]
        lines.append(f"| {branches} | {widths} | {share:.1%} | " + " | ".join(saved) + " |")
    lines += [
        "",
        "| form and batch | least ratio | median | at least .7 | slower than the parent |",
        "|---|---|---|---|---|",
    ]
    for index, name in enumerate(COLUMNS[3:], 3):
        ratios = [(1 - row[index]) / (1 - row[2]) for row in rows]  # type: ignore[operator]
        slower = sum(ratio < 0 for ratio in ratios)
        met = sum(ratio >= TARGET for ratio in ratios)
        middle = statistics.median(ratios)
        lines.append(f"| {name} | {min(ratios):.2f} | {middle:.2f} | {met} of {len(ratios)} | {slower} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=11, help="pairs of passes at batch 256; 20 times as many at batch 1"
    )
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    parents, rows = forms_of(dense_of(STAGES)), []
    for uneven in (False, True):
        for branches in (2, 4, 8):
            for target in (0.6, 0.4, 0.25):
                rows.append(measured(parents, variant(branches, target, uneven=uneven), options.rounds))
                print(*rows[-1], file=sys.stderr, flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread, {options.rounds} rounds\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
