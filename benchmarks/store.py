"""Latency of the store with many studies in it, and of the writes of a driver.

Fills a store and prints medians and 95th percentiles. ``python benchmarks/store.py`` uses SQLite in a temporary folder,
``python benchmarks/store.py --url postgresql+psycopg://user@host/empty-database`` another database.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from services.store import NotFound, Store, tables

ARMS = ("dense", "random")
CONFIG = {"arms": {name: {"space": ["training"], "settings": list(range(20))} for name in ARMS}}
EXPERIMENT = {"data": {"name": "digits"}, "training": {"epochs": 32, "rate": 0.002}, "widths": list(range(100))}
RESULT = {"validation_accuracy": 0.9, "macs": 12345, "probabilities": [[0.25] * 4] * 64, "confusion": [[7] * 10] * 10}
TELEMETRY = {"train_loss": 0.1, "validation_accuracy": 0.9, "telemetry": {"blockout/entropy/hidden": [0.5] * 4}}
NOW = datetime.now(UTC)
TIMES = {"created_at": NOW, "started_at": NOW, "finished_at": NOW}
SPENT = {"planned": 4800, "sample_passes": 4800, "seconds": 3.0, "suggest_seconds": 0.1, "score": 0.9}
CONTENTS = {"params": {}, "experiment": EXPERIMENT, "result": RESULT}
Row = dict[str, object]


def study_row(study: int) -> Row:
    state = "complete" if study % 10 else "failed"
    return {"id": study, "name": f"study-{study:06d}", "state": state, "config": CONFIG, "config_hash": "cafe", **TIMES}


def arm_rows(study: int) -> Iterator[Row]:
    for position, name in enumerate(ARMS):
        yield {"id": 2 * study + position, "study_id": study, "name": name, "position": position}


def trial_rows(study: int, trials: int) -> Iterator[Row]:
    for trial in range(trials):
        identity = {"id": study * trials + trial, "arm_id": 2 * study + trial % 2, "phase": "search"}
        state = "complete" if trial % 5 else "failed"
        yield {**identity, "number": trial // 2, "seed": trial, "state": state, **SPENT, **CONTENTS, **TIMES}


def epoch_rows(trial: int, epochs: int) -> Iterator[Row]:
    for epoch in range(epochs):
        spent = {"sample_passes": 150 * (epoch + 1), "seconds": 0.1 * (epoch + 1)}
        yield {"trial_id": trial, "epoch": epoch, "stage": "train", **spent, "metrics": TELEMETRY}


def fill(store: Store, studies: int, trials: int, epochs: int) -> None:
    """Write finished studies, past the interface: only what is done afterwards is measured."""
    with store._database.writing() as connection:
        for start in range(1, studies + 1, 500):
            numbers = range(start, min(start + 500, studies + 1))
            connection.execute(sa.insert(tables.studies), [study_row(study) for study in numbers])
            connection.execute(sa.insert(tables.arms), [row for study in numbers for row in arm_rows(study)])
            connection.execute(
                sa.insert(tables.trials), [row for study in numbers for row in trial_rows(study, trials)]
            )
        last = studies * trials
        rows = [row for trial in range(last, last + trials) for row in epoch_rows(trial, epochs)]
        connection.execute(sa.insert(tables.epochs), rows)
        if connection.dialect.name == "postgresql":
            for table in (tables.studies, tables.arms, tables.trials):
                connection.execute(
                    sa.text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")
                )
            connection.execute(sa.text("ANALYZE"))  # the server does so itself within a minute


def measured(action: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Return the median and the 95th percentile in milliseconds, after three calls to warm up."""
    for index in range(-3, 0):
        action(index)
    seconds = []
    for index in range(repeats):
        began = time.perf_counter()
        action(index)
        seconds.append(1000 * (time.perf_counter() - began))
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


def reads(store: Store, url: str, studies: int, trials: int) -> dict[str, Callable[[int], object]]:
    def show(index: int) -> None:
        name = f"study-{(index * 7919) % studies + 1:06d}"
        store.study(name)
        store.spent(name)
        store.trials(name)

    return {
        "open": lambda _: Store.open(url).close(),
        "list the newest 100 studies": lambda _: store.studies(),
        "list 100 failed studies, from the middle": lambda _: store.studies("failed", offset=studies // 20),
        "list all studies": lambda _: store.studies(limit=studies),
        "show a study: its row, its spending, its trials": show,
        "get the epochs of a trial": lambda index: store.epochs(studies * trials + index % trials),
        "look up a misspelled study": lambda _: missing(store),
    }


def missing(store: Store) -> None:
    with contextlib.suppress(NotFound):
        store.study("stuyd-000123")


def writes(store: Store) -> dict[str, Callable[[int], object]]:
    store.create_study("measured", config=CONFIG, config_hash="cafe", arms=["a"])
    store.claim_study("measured")
    ids: dict[int, int] = {}

    def add(index: int) -> None:
        values = {"phase": "search", "number": index + 3, "seed": index + 3, "planned": 4800, "experiment": EXPERIMENT}
        ids[index] = store.add_trial("measured", arm="a", **values).id

    def record(index: int) -> None:
        store.record_epochs(ids[index], [{"epoch": 0, "sample_passes": 150, "seconds": 0.1, **TELEMETRY}])

    return {
        "add_trial": add,
        "start_attempt": lambda index: store.start_attempt(ids[index]),
        "record_epochs, one epoch": record,
        "finish_trial": lambda index: store.finish_trial(ids[index], "complete", score=0.9, result=RESULT),
        "heartbeat": lambda _: store.heartbeat("measured"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="URL of an empty database (default: SQLite in a temporary folder)")
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--trials", type=int, default=10, help="trials per study")
    parser.add_argument("--epochs", type=int, default=100, help="epochs per trial, in one of the studies")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/store.db"
        with Store.open(url) as store:
            fill(store, options.studies, options.trials, options.epochs)
            print(
                f"{store.url.partition(':')[0]}, {options.studies} studies, {options.studies * options.trials} trials\n"
            )
            print("| operation | median, ms | 95th percentile, ms |\n|---|---|---|")
            for name, action in (reads(store, url, options.studies, options.trials) | writes(store)).items():
                median, high = measured(action, 10 if name == "list all studies" else options.repeats)
                print(f"| {name} | {median:.2f} | {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
