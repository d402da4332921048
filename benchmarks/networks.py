"""Any network through its graph: torchvision's, timm's and ours, masked and branched, compared, exported and timed.

Each network has weights as its factory draws them, in double precision, with noise on parameters that all start alike
(norms, biases, layer scales), so that no path is shut. Nodes of every layer join each of three clusters with
probability one half, whatever becomes of them: no clean-up. Statistics of batch norms are estimated under the mask.
The masked network, which is the original one with weights times the share of common clusters, and the branched one get
the same images in evaluation and in training mode (batch statistics; nothing is dropped at random). Their logits must
agree, must differ between images, and must disagree when one membership of one node in the middle of the network is
another one. In single precision the branched network of the first memberships is timed beside the dense one, exported
to ``.pt2`` and to ONNX, and both files are run on one image and on three.

Every network has a process of its own with a limit of CPU time; where the limit or an error ends it, the row says so
and keeps what was measured before. Times are CPU times of one thread, so that the load of the machine counts little.

Run: ``python -m benchmarks.networks [NAME...] [--seconds 300] [--csv FILE] [--page FILE]``;
rows of the CSV file that are measured anew are replaced, the others stay; the table of all of them is printed, and put
between the two marks of the page. timm is not needed: without it its networks are left out. With ``--table`` nothing is
measured, and the table is made of the rows that there are.
"""

import argparse
import csv
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.branched import MARKS
from benchmarks.network_measuring import NETWORKS, Row, measured


def examine(name: str, limit: int) -> None:
    """Measure one network and print what is found, a line of JSON for each step, until the limit of CPU seconds."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    torch.set_num_threads(1)
    for step, row in measured(NETWORKS[name]):
        print(json.dumps({"next": step, "found": row}), flush=True)


def row_of(name: str, limit: int) -> Row:
    """Measure one network in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.networks", "--only", name, "--seconds", str(limit)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        code = subprocess.run(command, stdout=out, stderr=errors, env=environment, check=False).returncode
        out.seek(0)
        errors.seek(0)
        steps = [json.loads(line) for line in out if line.startswith("{")]
        told = errors.read().strip().splitlines()
    row: Row = {"network": name, "failed": ""}
    for step in steps:
        _add(row, step["found"])
    row["load"] = max(load, os.getloadavg()[0], row.get("load", 0.0))
    if code:
        ended = (
            f"more than {limit} seconds of CPU time" if code == -signal.SIGXCPU else (told or [f"exit code {code}"])[-1]
        )
        row["failed"] = f"{steps[-1]['next'] if steps else 'start'}: {ended}"
    return row


_WORST = {"error": max, "error_training": max, "spread": min, "control": min, "largest": max, "largest_training": max}


def _add(row: Row, found: Row) -> None:
    """Add what a step found; of several memberships the worst differences, and the first one's sizes."""
    for key, value in found.items():
        if key == "seeds":
            row[key] = row.get(key, 0) + 1
        elif key in _WORST and key in row:
            row[key] = _WORST[key](row[key], value)
        else:
            row.setdefault(key, value)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows, as the CSV file has them, as two Markdown tables."""
    found = [
        "| network (pixels) | analysis, s | weights (depthwise) | layers (whole) | maskable | seeds "
        "| bundles, constants | MACs | error, evaluation | training | one membership changed | spread |",
        "|---" * 12 + "|",
    ]
    made = [
        "| network | rewriting, s | parent, ms | branched, ms | time (quartiles) | choice, s "
        "| .pt2, s (nodes) | error | ONNX, s (nodes) | error | all three, s |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        found.append(
            f"| {row['network']} ({row['side']}) | {_number(row['analysis_seconds'])} | {row['weights']} "
            f"({row['depthwise']}) | {row['layers']} ({row['rigid']}) | {_percent(row['maskable'])} | {row['seeds']} "
            f"| {row['bundles']}, {row['constants']} | {_percent(row['macs_share'])} "
            f"| {_power(row['error'])} | {_power(row['error_training'])} | {_power(row['control'])} "
            f"| {_power(row['spread'])} |"
        )
        quartiles = f" ({_ratio(row['time_low'])}, {_ratio(row['time_high'])})" if row["time"] else ""
        made.append(
            f"| {row['network']} | {_number(row['rewrite_seconds'])} | {_number(row['dense_milliseconds'])} "
            f"| {_number(row['branched_milliseconds'])} | {_ratio(row['time'])}{quartiles} "
            f"| {_number(row['choice_seconds'])} "
            f"| {_number(row['pt2_seconds'])} ({row['pt2_operations']}) | {_power(row['pt2_error'])} "
            f"| {_number(row['onnx_seconds'])} ({row['onnx_operations']}) | {_power(row['onnx_error'])} "
            f"| {_sum(row['choice_seconds'], row['pt2_seconds'], row['onnx_seconds'])} |"
        )
    whole = [f"- {row['network']}: {row['rigid_because']}" for row in rows if row["rigid_because"]]
    failed = [f"- {row['network']}, {row['failed']}" for row in rows if row["failed"]] or ["- nothing"]
    parts = ["\n".join(found), "\n".join(made), "Layers that stay whole, beside the classes:", "\n".join(whole)]
    return "\n\n".join([*parts, "What failed, and at which step:", "\n".join(failed), _conditions(rows)])


def _conditions(rows: Sequence[Mapping[str, str]]) -> str:
    loads = [float(row["load"]) for row in rows]
    names = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in names if importlib.util.find_spec(name))
    return (
        f"{versions}; one thread on {os.cpu_count()} cores with load averages of {min(loads):.0f} to {max(loads):.0f}."
    )


def _number(value: str) -> str:
    return f"{float(value):.1f}" if value else ""


def _sum(*values: str) -> str:
    return f"{sum(map(float, values)):.1f}" if all(values) else ""


def _ratio(value: str) -> str:
    return f"{float(value):.2f}" if value else ""


def _power(value: str) -> str:
    return f"{float(value):.0e}" if value else ""


def _percent(value: str) -> str:
    return f"{float(value):.1%}" if value else ""


_OF_GRAPH = ("network", "side", "parameters", "analysis_seconds", "weights", "depthwise", "layers", "rigid")
_OF_MASKS = ("rigid_because", "macs", "maskable", "seeds", "bundles", "constants", "macs_share")
_OF_EQUALITY = ("error", "error_training", "largest", "largest_training", "spread", "control", "rewrite_seconds")
_OF_TIME = ("choice_seconds", "dense_milliseconds", "branched_milliseconds", "time", "time_low", "time_high", "rounds")
_OF_PT2 = ("pt2_seconds", "pt2_megabytes", "pt2_operations", "pt2_error")
_OF_ONNX = ("onnx_seconds", "onnx_operations", "onnx_error")
FIELDS = (*_OF_GRAPH, *_OF_MASKS, *_OF_EQUALITY, *_OF_TIME, *_OF_PT2, *_OF_ONNX, "largest_single", "load", "failed")


def _written(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """Write the rows in the order of the networks, and return them as they are read again."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for name in NETWORKS:
            if name in rows:
                writer.writerow({key: _rounded(value) for key, value in rows[name].items()})
    return _read(path)


def _rounded(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _read(path: Path) -> list[Mapping[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, restval=""))


def main() -> None:
    """Measure the networks that are asked for, one after the other, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks, by default all")
    parser.add_argument("--seconds", type=int, default=300, help="CPU time of one network, at most")
    parser.add_argument("--csv", type=Path, help="file of rows to add to")
    parser.add_argument("--page", type=Path, help="page to insert the table into")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--only", help="measure this network in this process")
    options = parser.parse_args()
    if options.only:
        examine(options.only, options.seconds)
        return
    path = options.csv or Path(tempfile.mkdtemp()) / "networks.csv"
    rows: dict[str, Mapping[str, Any]] = {row["network"]: row for row in _read(path)} if path.exists() else {}
    for name in [] if options.table else options.names or NETWORKS:
        if name.startswith("timm") and importlib.util.find_spec("timm") is None:
            print(f"{name} is left out: timm is not installed", file=sys.stderr)
            continue
        rows[name] = row_of(name, options.seconds)
        print(name, rows[name]["failed"] or "done", file=sys.stderr, flush=True)
        _written(path, rows)
    text = table(_written(path, rows))
    print(text)
    if options.page:
        before, _, rest = options.page.read_text().partition(MARKS[0])
        options.page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
