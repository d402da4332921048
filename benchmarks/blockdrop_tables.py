"""The tables of docs/results/blockdrop.md, as Markdown, from the rows that the two benchmarks of BlockDrop wrote.

Run: ``python benchmarks/blockdrop_tables.py [--folder docs/results]``.
"""

import argparse
import csv
import statistics
from pathlib import Path

from nas_blockout.statistics.significance import holm, p_text, paired, summary

BATCHES = (1, 8, 64, 256)
PAIRS = (
    ("BlockDrop", "all blocks"),
    ("BlockDrop", "first K blocks"),
    ("BlockDrop", "random K blocks"),
    ("BlockDrop", "spread K blocks"),
    ("BlockDrop", "learned static path"),
    ("straight-through gates", "spread K blocks"),
    ("straight-through gates", "learned static path"),
)
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """Return the rows of a file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def by_arm(rows: Rows) -> dict[str, Rows]:
    """Return the rows of each arm; only seeds that all arms have count."""
    arms = {row["arm"]: [other for other in rows if other["arm"] == row["arm"]] for row in rows}
    complete = set.intersection(*({row["seed"] for row in results} for results in arms.values()))
    return {arm: [row for row in results if row["seed"] in complete] for arm, results in arms.items()}


def per_seed(rows: Rows, column: str, scale: float = 100.0) -> dict[int, float]:
    """Return a value by seed."""
    return {int(row["seed"]): scale * float(row[column]) for row in rows}


def mean(rows: Rows, column: str, scale: float = 1.0) -> float:
    """Return the mean over seeds."""
    return statistics.mean(per_seed(rows, column, scale).values())


def accuracy(arms: dict[str, Rows]) -> str:
    """Return the accuracy and the cost of every arm."""
    lines = []
    for arm, rows in arms.items():
        test = summary(per_seed(rows, "test_accuracy"), bounds=(0.0, 100.0))
        low, high = test.ci95 or (float("nan"), float("nan"))
        paths = ", ".join(row["paths"] for row in rows)
        cells = [f"{mean(rows, 'validation_accuracy', 100):.2f}", f"{test.mean:.2f} ({low:.2f} .. {high:.2f})"]
        cells += [f"{mean(rows, 'blocks'):.2f} ± {mean(rows, 'blocks_sd'):.2f}", paths]
        cells += [f"{mean(rows, 'mflops'):.2f} ± {mean(rows, 'mflops_sd'):.2f}"]
        lines.append([arm, *cells, f"{mean(rows, 'flops_saved', 100):.1f}%"])
    head = ["arm", "validation %", "test %, 95% interval", "blocks of 15, mean ± sd over images"]
    return table([*head, "distinct paths, by seed", "MFLOPs an image, mean ± sd", "FLOPs saved"], lines)


def differences(arms: dict[str, Rows]) -> str:
    """Return differences of test accuracy, paired by seed."""
    intervals = [paired(per_seed(arms[a], "test_accuracy"), per_seed(arms[b], "test_accuracy")) for a, b in PAIRS]
    corrected = holm([each.p_value for each in intervals])
    lines = []
    for (a, b), each, p in zip(PAIRS, intervals, corrected, strict=True):
        low, high = each.ci95 or (float("nan"), float("nan"))
        lines.append([f"{a} - {b}", f"{each.difference:+.2f}", f"{low:+.2f} .. {high:+.2f}", p_text(p)])
    return table(["pair", "points", "95% interval", "after Holm"], lines)


def times(arms: dict[str, Rows]) -> str:
    """Return milliseconds per image and the time saved, by batch size."""
    lines = []
    for arm, rows in arms.items():
        cells = [f"{mean(rows, f'ms_{batch}'):.3f}" for batch in BATCHES]
        cells += [
            f"{mean(rows, f'time_saved_{batch}', 100):.0f}%, {mean(rows, f'processor_saved_{batch}', 100):.0f}%"
            for batch in BATCHES
        ]
        lines.append([arm, f"{mean(rows, 'flops_saved', 100):.0f}%", *cells])
    head = ["arm", "FLOPs saved", *(f"ms an image, batch {batch}" for batch in BATCHES)]
    return table([*head, *(f"saved at {batch}: clock, processor" for batch in BATCHES)], lines)


def speed(rows: Rows) -> str:
    """Return the time saved on random paths against the operations saved."""
    lines = []
    for row in rows:
        flops = float(row["flops_saved"])
        clock, processor = (float(row[name]) for name in ("compacted_saved", "compacted_processor_saved"))
        lines.append(
            [row["blocks"], row["batch"], row["keep"], row["paths"]]
            + [f"{float(row[f'{name}_ms']):.1f}" for name in ("full", "masked", "compacted", "grouped")]
            + [f"{100 * value:.1f}%" for value in (flops, clock, processor)]
            + [f"{clock / flops:.2f}, {processor / flops:.2f}"]
        )
    head = ["blocks", "batch", "kept", "paths", "full ms", "masked ms", "compacted ms", "grouped ms", "FLOPs saved"]
    return table([*head, "clock saved", "processor saved", "saved time / saved FLOPs"], lines)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    folder = parser.parse_args().folder
    arms = by_arm(read(folder / "blockdrop.csv"))
    for text in (accuracy(arms), differences(arms), times(arms), speed(read(folder / "blockdrop-speed.csv"))):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
