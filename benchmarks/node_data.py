"""Memory of the workers of one machine, each with its own copy of the data and with one copy in Ray's object store.

Starts so many Ray actors, each with the worker that trials run in, and lets each read every image of the data once.
Printed are the sums over the actors of their resident set size (RSS), which counts shared pages once a process, and of
their proportional one (PSS), which divides them among the processes; and the seconds of CPU until the data is there.

Run: ``python benchmarks/node_data.py [--data NAME] [--actors N]``; prints a Markdown table.
"""

import argparse
import time
from pathlib import Path

import ray

from nas_blockout.data import DataSettings, load
from services.cluster.shared_data import SharedData, splits_of
from services.cluster.worker import Worker


@ray.remote(num_cpus=0)
class Reader:
    """A worker that has read the data and trains nothing."""

    def __init__(self, settings: DataSettings, data: SharedData | None) -> None:
        began = time.process_time()
        self._worker = Worker(data=data)
        self._splits = splits_of(settings, None, self._worker._data)
        self._seconds = time.process_time() - began
        self._sum = sum(int(part.pixels.sum()) for part in (self._splits.train, self._splits.validation))

    def used(self) -> tuple[float, float, float]:
        """Return RSS and PSS in MiB, and the CPU seconds until the data was there."""
        lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
        return kilobytes["Rss"] / 1024, kilobytes["Pss"] / 1024, self._seconds


def measure(name: str, actors: int, *, shared: bool) -> None:
    """Print one row."""
    settings = DataSettings(name=name)
    data = SharedData.of(load(settings), settings, None) if shared else None
    reference = ray.put(data)
    readers = [Reader.remote(settings, reference) for _ in range(actors)]
    # Two rounds: shared pages are divided among all only when all have read them.
    ray.get([reader.used.remote() for reader in readers])
    used = ray.get([reader.used.remote() for reader in readers])
    rss, pss, seconds = (sum(each) for each in zip(*used, strict=True))
    what = "one in the object store" if shared else "one a worker"
    print(f"| {what} | {actors} | {rss:,.0f} | {pss:,.0f} | {pss / actors:,.0f} | {seconds / actors:.2f} |", flush=True)
    for reader in readers:
        ray.kill(reader)


def main() -> None:
    """Measure both, with one actor and with all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--actors", type=int, default=6)
    options = parser.parse_args()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000)
    print("| copies | workers | RSS, MiB | PSS, MiB | PSS a worker | CPU s a worker |\n|---|---:|---:|---:|---:|---:|")
    for actors in (1, options.actors):
        for shared in (False, True):
            measure(options.data, actors, shared=shared)
    ray.shutdown()


if __name__ == "__main__":
    main()
