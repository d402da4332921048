"""Speed of branched networks: the share of time saved compared with the share of multiply-accumulates saved.

Three convnets on 3x32x32 images are the dense parents: ``small`` with 32, 64 and 128 channels and 256 hidden nodes,
``large`` with twice as many of each, and ``wide`` with four times as many. Their branched variants have 2, 4 or 8
branches (of ``wide``, which takes longest, 2 or 8) and 60, 40 or 25% of the parent's multiply-accumulates, and no layer
is wider than the parent's. Two kinds: with a ``trunk`` of layers before the first branches, which are disjoint from
there on; or with nodes in every layer that are ``shared`` by all branches, at least an eighth of them, as distilled
networks have. Layers are thinned as little as the multiply-accumulates allow. Forms: ``eager`` is `for_inference` of
the trained network, ``exported`` its .pt2 program, ``onnx`` the network for ``runtime="onnxruntime"`` in onnxruntime,
each built for the batch size that it is run with. The parent always has the same form. Weights are random.

A figure is the ratio of the lower quartiles over passes of both networks, in seconds of CPU time of the only thread
that computes, so that other processes are not counted, though they disturb. In every round the parent, a second copy
of it, and the network run in random order. The second copy shows the effect of chance: the ``band`` of a parent, form
and batch size contains 95% of its ratios, one from each variant; a figure within the band does not differ from the
parent. The number of rounds takes about `SECONDS`, as estimated by a first round that is not counted, with at least
`FEWEST` and at most ``--rounds`` rounds with 256 images or 20 times as many with one. A row shows the smallest number
of its figures.

Run: ``python -m benchmarks.branched [--rounds N] [--parents small large wide]``; prints Markdown. ``--csv FILE``
also writes the rows to a file; ``--read FILE`` reads such rows instead of measuring; ``--page FILE`` puts the output
between the two marks of that page.
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
from nas_blockout.backbones.inference import FusedNetwork

SHAPE, CLASSES = (3, 32, 32), 10
EXAMPLE = torch.zeros(2, *SHAPE)
PARENTS = {
    "small": stages(ConvNetSettings((32, 64, 128), (256,)), SHAPE, CLASSES),
    "large": stages(ConvNetSettings((64, 128, 256), (512,)), SHAPE, CLASSES),
    "wide": stages(ConvNetSettings((128, 256, 512), (1024,)), SHAPE, CLASSES),
}
FORMS = ("eager", "exported", "onnx")
BATCHES = (1, 256)
BRANCHES = {"small": (2, 4, 8), "large": (2, 4, 8), "wide": (2, 8)}
TARGET = 0.7
SECONDS, FEWEST = 5.0, 3  # of rounds of one figure
MARKS = ("<!-- measured -->", "<!-- end of what was measured -->")
FIGURES = tuple(f"{form} {batch}" for batch in BATCHES for form in FORMS)
ROUNDS = tuple(f"rounds {batch}" for batch in BATCHES)
COLUMNS = ("parent", "kind", "branches", "macs", *FIGURES, *(f"parent again {figure}" for figure in FIGURES), *ROUNDS)

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
    last = Layer(
        "classes",
        tuple(
            Group((b,), len(labels_of_branch), labels_of_branch)
            for b, labels_of_branch in enumerate(labels)
            if labels_of_branch
        ),
    )
    return Architecture(branches, (*layers, last))


def variant(parent: str, kind: str, branches: int, target: float) -> Variant:
    """Return the architecture nearest to a share of the MACs, of the least thinned of those within a fiftieth."""
    plan = PARENTS[parent]
    dense, thins = macs_of(dense_of(plan), plan, SHAPE[0]), [step / 64 for step in range(16, 65)]
    if kind == "shared":
        settings = [(0, step / 32, thin) for step in range(4, 33) for thin in thins]
    else:
        settings = [(trunk, 0.0, thin) for trunk in range(len(plan) - 1) for thin in thins]
    candidates = []
    for trunk, shared, thin in settings:
        architecture = structure(plan, branches, trunk, shared, thin)
        share = macs_of(architecture, plan, SHAPE[0]) / dense
        far = abs(share - target)
        rank = (far > 0.02, -thin if far <= 0.02 else far, far)
        candidates.append((rank, Variant(parent, kind, branches, architecture, share)))
    return min(candidates, key=lambda pair: pair[0])[1]


def forms_of(plan: Sequence[Stage], architecture: Architecture) -> dict[int, dict[str, Run]]:
    """Return a network in every form, as functions of a batch of images, by the batch that it is divided for.

    Where it is divided alike for several it is the same function.
    """
    torch.manual_seed(0)
    network = BranchedNetwork(plan, architecture, channels=SHAPE[0]).eval()
    forms: dict[int, dict[str, Run]] = {}
    made: dict[object, dict[str, Run]] = {}
    for batch in BATCHES:
        eager = network.for_inference(batch=batch)
        for_onnx = network.for_inference(runtime="onnxruntime", batch=batch)
        by_torch, by_onnx = ("torch", _division(eager)), ("onnxruntime", _division(for_onnx))
        if by_torch not in made:
            made[by_torch] = {"eager": eager, "exported": _exported(eager)}
        if by_onnx not in made:
            made[by_onnx] = {"onnx": onnx_of(for_onnx)}
        forms[batch] = made[by_torch] | made[by_onnx]
    return forms


def _division(network: FusedNetwork) -> tuple[tuple[str, torch.Size], ...]:
    """Return the names and shapes of all weights, which identify operations and groups."""
    return tuple((name, weight.shape) for name, weight in network.state_dict().items())


def _exported(network: FusedNetwork) -> Run:
    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(_program(network), saved)
    loaded: Run = torch.export.load(io.BytesIO(saved.getvalue())).module()
    return loaded


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


def ratios(parent: Run, others: Sequence[Run], images: Tensor, rounds: int) -> tuple[list[float], int]:
    """Return the times of `others` as shares of the time of `parent`, and the rounds; in each all pass in random order.

    There are fewer rounds than asked for where these would take longer than `SECONDS` by the first, which is not
    counted.
    """
    runs, draws = (parent, *others), random.Random(0)  # an order, not a secret
    first = sum(_round(runs, images, draws))
    times = max(FEWEST, min(rounds, int(SECONDS / first)))
    seconds = zip(*(_round(runs, images, draws) for _ in range(times)), strict=True)
    of_parent, *of_others = (statistics.quantiles(ratios, n=4)[0] for ratios in seconds)
    return [each / of_parent for each in of_others], times


def _round(runs: Sequence[Run], images: Tensor, draws: random.Random) -> list[float]:
    """Return the seconds of each run, in the given order; they run in random order."""
    seconds = [0.0] * len(runs)
    for index in draws.sample(range(len(runs)), len(runs)):
        began = time.thread_time()
        runs[index](images)
        seconds[index] = time.thread_time() - began
    return seconds


def measured(parent: Mapping[str, Run], again: Mapping[str, Run], each: Variant, rounds: int) -> dict[str, object]:
    """Return the row of one variant: its time as a share of the parent's, by batch and form, and that of a copy."""
    networks = forms_of(PARENTS[each.parent], each.architecture)
    row: dict[str, object] = dict(zip(COLUMNS, (each.parent, each.kind, each.branches), strict=False))
    row["macs"] = round(each.share, 4)
    for batch in BATCHES:
        images, counts = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch)), []
        for form in FORMS:
            runs, times = (networks[batch][form], again[form]), rounds * (20 if batch == 1 else 1)
            (of_network, once_more), count = ratios(parent[form], runs, images, times)
            row[f"{form} {batch}"], row[f"parent again {form} {batch}"] = round(of_network, 4), round(once_more, 4)
            counts.append(count)
        row[f"rounds {batch}"] = min(counts)
    return row


def bands(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return by parent and figure the interval that holds 95% of the ratios of the parent to its copy."""
    bands = {}
    for parent, figure in product(dict.fromkeys(row["parent"] for row in rows), FIGURES):
        again = [float(row[f"parent again {figure}"]) for row in rows if row["parent"] == parent]
        low, high = np.quantile(again, [0.025, 0.975])
        bands[parent, figure] = (float(low), float(high))
    return bands


def summary(rows: Sequence[Row]) -> str:
    """Return how many figures reach the target, and how many are slower than the parent: a sentence, then by parent."""
    by_parent = {parent: _counted(rows, parent) for parent in dict.fromkeys(row["parent"] for row in rows)}
    figures, reach, slower, beyond, worst = (list(each) for each in zip(*by_parent.values(), strict=True))
    text = (
        f"**{sum(reach)} of {sum(figures)} figures reach .7; {sum(slower)} lie above the parent's time, {sum(beyond)} "
        "of them beyond what a second copy of the parent does"
    )
    lines = [text + (f", the worst at {max(worst):.0%} of it.**" if any(beyond) else ".**"), ""]
    lines += ["| parent | figures | reach .7 | slower | beyond the band | worst of these |", "|---" * 6 + "|"]
    for parent, (*counts, most) in by_parent.items():
        lines.append(f"| {parent} | {' | '.join(map(str, counts))} | {f'{most:.0%}' if most else '-'} |")
    return "\n".join(lines)


def _counted(rows: Sequence[Row], parent: str) -> tuple[int, int, int, int, float]:
    """Return the figures of a parent, how many reach the target, are slower and lie beyond, and the worst of these."""
    band = bands(rows)
    counted = [
        (float(row[figure]), float(row["macs"]), band[parent, figure][1])
        for row, figure in product(rows, FIGURES)
        if row["parent"] == parent
    ]
    beyond = [left for left, _, high in counted if left > max(1.0, high)]
    reach, slower = (
        sum((1 - left) / (1 - share) >= TARGET for left, share, _ in counted),
        sum(each[0] > 1 for each in counted),
    )
    return len(counted), reach, slower, len(beyond), max(beyond, default=0.0)


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
        selected = [row for row in rows if (row["parent"], row["kind"]) == (parent, kind)]
        shares = [(1 - float(row[figure])) / (1 - float(row["macs"])) for row in selected]
        (low, high), met = band[parent, figure], sum(each >= TARGET for each in shares)
        beyond = sum(float(row[figure]) > max(1.0, high) for row in selected)
        lines.append(
            f"| {parent} | {kind} | {figure} | {min(shares):.2f} | {statistics.median(shares):.2f} "
            f"| {met} of {len(shares)} | {sum(each < 0 for each in shares)} | {low:.1%} to {high:.1%} | {beyond} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all variants, or read what was measured, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="passes of each network at batch 256; 20 times as many at batch 1"
    )
    parser.add_argument("--parents", nargs="+", choices=list(PARENTS), default=list(PARENTS))
    parser.add_argument("--csv", type=Path, help="file to write the rows to")
    parser.add_argument("--read", type=Path, help="file of rows to read instead of measuring")
    parser.add_argument("--page", type=Path, help="page to insert the result into")
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
            f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread, {_rounds(rows)}; "
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


def _rounds(rows: Sequence[Row]) -> str:
    """Return the fewest and the most rounds by batch."""
    rounds = {batch: sorted(int(row[f"rounds {batch}"]) for row in rows) for batch in BATCHES}
    return ", ".join(f"{counts[0]} to {counts[-1]} rounds at batch {batch}" for batch, counts in rounds.items())


def _measure(parents: Sequence[str], rounds: int) -> list[dict[str, str]]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows = []
    for parent in parents:
        plan = PARENTS[parent]
        dense, again = (forms_of(plan, dense_of(plan))[BATCHES[0]] for _ in range(2))  # alike for any
        for kind, branches, target in product(("trunk", "shared"), BRANCHES[parent], (0.6, 0.4, 0.25)):
            row = measured(dense, again, variant(parent, kind, branches, target), rounds)
            rows.append({name: str(row[name]) for name in COLUMNS})
            print(*row.values(), file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
