"""Inference time of residual networks that skip blocks: full, masked, compacted and grouped, including the policy.

Run: ``python benchmarks/blockdrop.py [--depths 32 56 110] [--batches 1 8 64 256] [--rows speed.csv]``; prints Markdown.

The policy network runs, but the paths are drawn at random, so that their share of kept blocks is given:
``independent`` draws every block of every image, the hardest case; ``ten paths`` gives each image one of ten. Rounds
cycle through four draws, each run once before it is timed, since a convolution is compiled for every new batch size and
then cached. The routes take turns, so that disturbances of the machine affect all of them. Savings are medians over
rounds of 1 - route / full, both from the same round: in wall-clock time, and in CPU time, which other processes on a
shared machine hardly affect.

The C library is set to keep the memory that it frees (the process starts itself again for that). Otherwise large
activations are returned to the system and faulted in again at each use, which slows the full network more than the
compacted one and would favor the latter.
"""

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas_blockout.backbones.resnet import ResNet, ResNetSettings
from nas_blockout.methods.blockdrop import BlockDrop, BlockDropSettings
from nas_blockout.methods.paths.block_routes import (
    ROUTES,
)

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**31),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}
SHAPE = (3, 32, 32)
DRAWS = 4
PATHS = ((0.3, "independent"), (0.5, "independent"), (0.5, "ten paths"), (0.7, "independent"))
Row = dict[str, float | int | str]


def drawn_paths(kind: str, batch: int, blocks: int, share: float, generator: torch.Generator) -> Tensor:
    """Return random paths, bool, shape ``(batch, blocks)``."""
    if kind == "independent":
        return torch.rand(batch, blocks, generator=generator) < share
    ten = torch.rand(10, blocks, generator=generator) < share
    return ten[torch.randint(10, (batch,), generator=generator)]


class Seconds(NamedTuple):
    """Wall-clock and CPU time of one call; other processes on the machine hardly affect the latter."""

    wall: float
    processor: float


def seconds_of(function: Callable[[], object]) -> Seconds:
    """Return the time of one call on one thread."""
    wall, processor = time.perf_counter(), time.thread_time()
    function()
    return Seconds(time.perf_counter() - wall, time.thread_time() - processor)


def saving(ours: list[Seconds], full: list[Seconds], clock: str) -> float:
    """Return the share of time saved: the median over rounds in which both took turns."""
    pairs = zip(ours, full, strict=True)
    return statistics.median(1 - getattr(a, clock) / getattr(b, clock) for a, b in pairs)


@torch.no_grad()
def measure(model: BlockDrop, batch: int, share: float, kind: str, rounds: int) -> Row:
    """Return medians over rounds for one network, batch size and kind of paths."""
    x, generator = torch.randn(batch, *SHAPE), torch.Generator().manual_seed(0)
    network, flops = model.network, model.flops(x[:1])
    draws = [drawn_paths(kind, batch, len(flops.blocks), share, generator) for _ in range(DRAWS)]
    times: dict[str, list[Seconds]] = {name: [] for name in ("full", "policy", *ROUTES)}
    saved: list[float] = []
    for number in range(DRAWS + rounds):
        keep = draws[number % DRAWS]
        calls: dict[str, Callable[[], object]] = {"full": lambda: network(x), "policy": lambda: model.policy(x)}
        for name, route in ROUTES.items():
            calls[name] = lambda route=route, keep=keep: (model.policy(x), route(network, x, keep, None))
        for name, call in calls.items():
            spent = seconds_of(call)
            if number >= DRAWS:
                times[name].append(spent)
        if number >= DRAWS:
            saved.append(1 - float(flops.of(keep).mean()) / flops.full)
    row: Row = {"batch": batch, "keep": share, "paths": kind, "rounds": rounds, "flops_saved": statistics.mean(saved)}
    for name, values in times.items():
        row[f"{name}_ms"] = 1e3 * statistics.median(value.wall for value in values)
        row[f"{name}_saved"] = saving(values, times["full"], "wall")
        row[f"{name}_processor_saved"] = saving(values, times["full"], "processor")
    return row


def measured(depths: list[int], batches: list[int], pool: int, rounds: int) -> Iterator[Row]:
    """Yield a row for each network, batch size, share of kept blocks and kind of paths."""
    for depth in depths:
        torch.manual_seed(0)
        network = ResNet(ResNetSettings(depth=depth), SHAPE, 10)
        model = BlockDrop(network, BlockDropSettings(policy_widths=(16, 32, 64), policy_pool=pool), shape=SHAPE).eval()
        for batch in batches:
            for share, kind in PATHS:
                some = max(5, rounds // 3) if batch > 64 else rounds
                yield {"depth": depth, "blocks": len(network.blocks)} | measure(model, batch, share, kind, some)


def write(rows: list[Row], path: Path) -> None:
    """Write the rows so far."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in rows)


def main() -> None:
    """Print the table line by line as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[32, 56, 110])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--policy-pool", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=Path, help="also write all medians to this CSV file")
    options = parser.parse_args()
    if not all(name in os.environ for name in KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    columns = ["blocks", "batch", "kept", "paths", "full ms", "policy ms", "masked", "compacted", "grouped"]
    columns += ["FLOPs saved", "time saved", "CPU time saved"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    rows = []
    for row in measured(options.depths, options.batches, options.policy_pool, options.rounds):
        rows.append(row)
        if options.rows:
            write(rows, options.rows)
        spent = " | ".join(
            f"{row[f'{name}_ms']:.1f}" for name in ("full", "policy", *("masked", "compacted", "grouped"))
        )
        print(
            f"| {row['blocks']} | {row['batch']} | {row['keep']} | {row['paths']} | {spent} | {row['flops_saved']:.1%} "
            f"| {row['compacted_saved']:.1%} | {row['compacted_processor_saved']:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
