"""What the library does on one GPU: right results, host syncs, cost of layers and steps, loops, inference.

``python device_check.py --out check.json [--seconds 360] [--data FILE.npz]``; without a GPU ``--device cpu --quick``.
Each part is a process, ended at its deadline. Parts 2 and 3, which read no clock, and the compiling for later parts go
first, at once. Times are medians over rounds in which all forms take turns, by CUDA events; small inputs rotate through
more than the L2 cache. FILE has ``x_train, y_train, x_val, y_val``: uint8 ``(n, [c,] h, w)``, and labels from 0.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from device_measuring import Check, last_line
from device_parts import (
    branched,
    correctness,
    droppers,
    host_syncs,
    layers,
    loops,
    machine,
    many,
    paper,
    skipping,
    whole_steps,
)

from nas_blockout.methods import METHODS

Task = tuple[int, Callable[..., None], float, tuple[str, ...]]  # part, work, usual seconds, what else it is told
FIRST: list[Task] = [*((2, correctness, 60, (name,)) for name in METHODS), (3, host_syncs, 60, ())]
TIMED: list[Task] = [(1, machine, 8, ()), (4, layers, 45, ()), (5, whole_steps, 60, ()), (6, droppers, 15, ())]
TIMED += [(7, skipping, 20, ()), (7, branched, 30, ()), (8, loops, 40, ()), (9, many, 35, ()), (10, paper, 60, ())]
COMPILING: list[Task] = [(4, layers, 60, ()), (7, branched, 60, ()), (8, loops, 60, ())]
COMPILING += [(5, whole_steps, 60, ("resnet 18", name)) for name in ("none", "head", "all")]
COMPILING += [(5, whole_steps, 60, ("inception", name)) for name in ("none", "head")]


def enter(task: Task, check: Check) -> None:
    """Run a task in a process group of its own, and say how it ended."""
    os.setpgid(0, 0)
    torch.set_num_threads(1 if check.device == "cpu" else 4)
    began, end = time.monotonic(), "complete"
    try:
        task[1](check, *task[3])
    except Exception as error:  # noqa: BLE001  # whatever it is, the table tells
        end = last_line(error)
    check.row(
        "0 how parts ended",
        part=task[0],
        what=" ".join((task[1].__name__, *task[3])),
        end=end,
        seconds=time.monotonic() - began,
    )


def run(tasks: list[tuple[Task, Check]]) -> None:
    """Run tasks at the same time; end by force what outlasts its deadline, and what they leave behind."""
    processes = [multiprocessing.Process(target=enter, args=each) for each in tasks]
    [process.start() for process in processes]
    for (task, check), process in zip(tasks, processes, strict=True):
        process.join(max(0.1, check.deadline + 4 - time.monotonic()))
        if process.exitcode != 0:
            end = f"ended by force, or died with {process.exitcode}"
            check.row("0 how parts ended", part=task[0], what=" ".join((task[1].__name__, *task[3])), end=end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]  # its group, with what compiles for it
        process.join(5)


def markdown(tables: Mapping[str, list[dict[str, object]]]) -> str:
    lines = []
    for title in sorted(tables, key=lambda title: int(title.split()[0])):
        columns = list(dict.fromkeys(column for row in tables[title] for column in row))
        lines += ["", f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in tables[title]:
            cells = [f"{v:.4g}" if isinstance(v := row.get(c, ""), float) and v < 1e4 else str(v) for c in columns]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--parts", type=lambda text: [int(n) for n in text.split(",")], default=list(range(1, 11)))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--data", type=Path, help="for part 10, which is left out without it")
    parser.add_argument("--start", default="fork", choices=("fork", "spawn"), help="spawn if CUDA refuses forks")
    options, began = parser.parse_args(), time.monotonic()
    multiprocessing.set_start_method(options.start)
    timed = [task for task in TIMED if task[0] in options.parts and (task[0] != 10 or options.data)]
    first = [(task, False) for task in FIRST if task[0] in options.parts]
    first += [(task, True) for task in COMPILING if task[0] in options.parts]
    steps = [first, *([(task, False)] for task in timed)][not first :]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "compiled"))
        check = Check(options.device, options.quick, Path(folder, "rows"), options.data)
        check.rows.touch()
        for number, tasks in enumerate(steps):
            left = began + options.seconds - 8 - time.monotonic()
            left = max(1.0, left * tasks[0][0][2] / sum(each[0][0][2] for each in steps[number:]))
            print(f"{tasks[0][0][1].__name__}: {left:.0f} s", file=sys.stderr, flush=True)
            run([(task, replace(check, deadline=time.monotonic() + left, warm=warm)) for task, warm in tasks])
            tables: dict[str, list[dict[str, object]]] = {}
            for line in check.rows.read_text().splitlines():
                tables.setdefault(json.loads(line)[0], []).append(json.loads(line)[1])
            options.out.write_text(json.dumps(tables, indent=1))
    print(markdown(tables))


if __name__ == "__main__":
    main()
