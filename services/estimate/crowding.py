"""By what factor trials slow one another down, measured: as many as will run at once are trained at the same time.

Threads on one processor, memory of one bus, kernels of one card: what trials share no formula knows, so copies of one
training are measured together and one of them alone, in processes like those of a study.
"""

import multiprocessing
import multiprocessing.synchronize
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

import torch

from nas_blockout.data import Splits, load
from nas_blockout.devices import keep_freed_memory
from nas_blockout.experiment import Experiment
from services.estimate.measurement import measure

MOST_COPIES = 16  # each is a process that imports torch and holds the data
START_SECONDS = 120.0  # until all processes have read their data, on a busy machine


@dataclass(frozen=True, slots=True)
class Crowd:
    """What is trained at the same time.

    Args:
        experiment: One training, the same in every process.
        data_root: Folder of the data sets, or None for the default locations.
        copies: Processes, 2 or more.
        threads: Threads of each.
        devices: Device of each, such as ``cuda:0`` twice and ``cuda:1`` twice for four that share two cards.
        seconds: About how long each measures, once alone and once together.
    """

    experiment: Experiment
    data_root: Path | None
    copies: int
    threads: int
    devices: tuple[str, ...]
    seconds: float


def slowdown(crowd: Crowd) -> float | None:
    """Return the factor by which a training takes longer beside the others than alone, 1 or more.

    Returns:
        None if a process failed or did not start in time: the caller then has to guess.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    barrier = context.Barrier(crowd.copies)
    ends = [context.Pipe(duplex=False) for _ in range(crowd.copies)]
    processes = [
        context.Process(target=_train, args=(crowd, number, barrier, sender), daemon=True)
        for number, (_, sender) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, sender in ends:
        sender.close()  # else the end of a process that dies would never be noticed
    try:
        answers = [receiver.recv() for receiver, _ in ends]
    except EOFError:
        return None
    finally:
        for process in processes:
            process.terminate()
            process.join()
    alone = answers[0][0]
    together = fmean(seconds for _, seconds in answers)
    return max(1.0, together / alone) if alone > 0 else None


def _train(crowd: Crowd, number: int, barrier: multiprocessing.synchronize.Barrier, sender: Connection) -> None:
    """Send the seconds of a whole training, measured alone (in the first process only) and beside the others."""
    torch.set_num_threads(crowd.threads)
    keep_freed_memory()
    wait = START_SECONDS + 4 * crowd.seconds
    try:
        splits = load(crowd.experiment.data, root=crowd.data_root)
        barrier.wait(wait)
        alone = _seconds(crowd, splits, number) if number == 0 else 0.0
        barrier.wait(wait)
        together = _seconds(crowd, splits, number)
        barrier.wait(wait)  # whoever is done first would leave the others alone
        sender.send((alone, together))
    except Exception:  # noqa: BLE001  # the caller guesses then; a study tells what is wrong
        barrier.abort()  # the others would wait for this one


def _seconds(crowd: Crowd, splits: Splits, number: int) -> float:
    return measure(crowd.experiment, splits, seconds=crowd.seconds, device=crowd.devices[number]).seconds
