"""CPU seconds, memory and bytes that the end of a long study takes, by part: comparison, CSV, report, ``show``, lists.

A small study is run without training, as in benchmarks/many_trials.py, and the rows of its search trials are copied in
the store under further numbers until every searched arm has so many, with scores and costs that are drawn anew, so that
no two trials are equal. Copies have no epochs. Everything after that is what `nas-blockout run` does when the last one
has ended, exports and MLflow left out, and the commands that read such a study.

Run: ``python benchmarks/long_study.py [--trials N,N] [--arms NAMES] [--profile PART]``; prints a Markdown table.
"""

import argparse
import contextlib
import cProfile
import io
import os
import pstats
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from many_trials import RECORDED, Clock, Machine, Recorded, resident_bytes

from nas_blockout.data import load
from services.execution.driver import Driver
from services.files.study_dir import Folder, environment, write_json
from services.finalize import finalize
from services.finalize.report_input import write_report
from services.finalize.winners import search_latencies
from services.settings import Settings
from services.store import Store, tables
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import RETRAIN, SEARCH

TEMPLATES = 12
ARMS: dict[str, dict[str, Any]] = {
    "random": {"space": ["training", "branched"]},
    "asha": {"space": ["training", "branched"], "pruner": {"name": "asha"}},
    "two": {"space": ["training", "branched"], "objectives": ["accuracy", "macs"]},
    "three": {"space": ["training", "branched"], "objectives": ["accuracy", "macs", "parameters"]},
}


def document(arms: list[str], trials: int) -> dict[str, Any]:
    """Return a study whose arms search so many trials each."""
    return {
        "schema_version": 2,
        "name": "long",
        "data": {"name": "digits", "train_samples": 50},
        "backbone": {"name": "convnet", "channels": [8], "hidden": [16]},
        "training": {"epochs": 9, "batch_size": 16, "learning_rate": 0.01},
        "budget": {"trainings": trials + 2},
        "retrain": {"seeds": [0, 1]},
        "export": [],
        "arms": {name: ARMS[name] for name in arms},
    }


def run_small(study: Study, settings: Settings) -> None:
    """Run the trials of a study, which train nothing."""
    folder = Folder(settings.folder(study.name))
    with Store.open(settings.store_url) as store:
        store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        options: dict[str, Any] = {"folder": folder, "settings": settings, "observe": lambda progress: None}
        driver = Driver(study, load(study.data), store, **options)
        for _ in Machine(driver, Recorded(RECORDED), Clock()).run():
            pass
        with store._database.writing() as connection:  # the results of models have more than those of trials
            columns = tables.trials.c
            for row in connection.execute(sa.select(columns.id, columns.result).where(columns.phase == RETRAIN)).all():
                result = {**row.result, "test_accuracy": row.result["validation_accuracy"]}
                connection.execute(sa.update(tables.trials).where(columns.id == row.id).values(result=result))
    write_json(folder.root / "environment.json", environment())


def grow(store: Store, study: Study, trials: int) -> None:
    """Copy the search trials of every arm until it has so many."""
    draws, columns = random.Random(0), tables.trials.c
    with store._database.writing() as connection:
        query = sa.select(tables.trials).where(columns.phase == SEARCH).order_by(columns.id)
        by_arm: dict[int, list[dict[str, Any]]] = {}
        for row in connection.execute(query).mappings():
            by_arm.setdefault(row["arm_id"], []).append(dict(row))
        for rows in by_arm.values():
            copies = [_copy(draws, rows[number % len(rows)], number) for number in range(len(rows), trials)]
            if copies:
                connection.execute(sa.insert(tables.trials), copies)
        larger = {**study.to_json(), "budget": {**study.to_json()["budget"], "trainings": trials + 2}}
        connection.execute(sa.update(tables.studies).values(config=larger))


def _copy(draws: random.Random, row: dict[str, Any], number: int) -> dict[str, Any]:
    copied = {key: row[key] for key in row if key != "id"} | {"number": number}
    if row["state"] != "complete":
        return copied
    # Better networks cost more, by and large: the front of such trials has many of them.
    macs = draws.randrange(2_000, 60_000)
    score = min(row["score"], 0.4 + 0.3 * (macs / 60_000) ** 0.3 + 0.02 * draws.random())
    costs = {"macs": macs, "parameters": round(macs / 3 * draws.uniform(0.8, 1.2)), "validation_accuracy": score}
    return copied | {"score": score, "result": {**row["result"], **costs}}


class Parts:
    """Runs parts of the work, and prints what each takes."""

    def __init__(self, label: str, profiled: str | None) -> None:
        self._label, self._profiled = label, profiled

    def run(self, name: str, work: Callable[[], Any], size: Callable[[], int] = lambda: 0) -> Any:
        """Run a part, and print its CPU seconds, the memory of the process after it, and the bytes it wrote."""
        profile = cProfile.Profile() if name == self._profiled else contextlib.nullcontext()
        began = time.process_time()
        with profile:
            result = work()
        seconds = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        written = f"{size() / 1e6:,.2f}" if size() else ""
        cells = (self._label, name, f"{seconds:.2f}", f"{resident_bytes() / 2**20:,.0f}", f"{peak:,.0f}", written)
        print(f"| {' | '.join(cells)} |", flush=True)
        if isinstance(profile, cProfile.Profile):
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
        return result


def measure(arms: list[str], trials: int, small: Path, profiled: str | None) -> None:
    """Print what the end of a study of so many trials takes."""
    with tempfile.TemporaryDirectory() as home:
        shutil.copytree(small, home, dirs_exist_ok=True)
        os.environ["NAS_BLOCKOUT_HOME"] = home
        settings = Settings(home=Path(home), store_url=f"sqlite:///{home}/runs/nas_blockout.db", tracking_uri=None)
        study = resolve_document(document(arms, trials), source="benchmark")
        store = Store.open(settings.store_url)
        grow(store, study, trials)
        parts = Parts(f"{trials:,}", profiled)
        rows = parts.run("read all trials", lambda: store.trials(study.name))
        splits, folder = load(study.data), Folder(settings.folder(study.name))
        searched = parts.run("latencies of the search", lambda: search_latencies(study, rows, splits))
        found = parts.run(
            "comparison and trials.csv",
            lambda: finalize.write_comparison(study, rows, folder, latency={}, search_latency=searched),
            lambda: (folder.root / "trials.csv").stat().st_size,
        )
        parts.run(
            "report",
            lambda: write_report(study, store, rows, found, splits, folder),
            lambda: sum(path.stat().st_size for path in folder.report.parent.rglob("*") if path.is_file()),
        )
        page, found_bytes = folder.report.stat().st_size / 1e6, folder.comparison.stat().st_size / 1e6
        print(f"(page {page:.2f} MB, comparison {found_bytes:.2f} MB)", flush=True)
        for command in (["show", study.name], ["show", study.name, "--json"], ["list"]):
            parts.run(" ".join(command), lambda command=command: _command(command))
        store.close()


def _command(arguments: list[str]) -> None:
    from typer.testing import CliRunner

    from services.cli.main import app

    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        print(arguments, result.exit_code, result.output[-300:], repr(result.exception)[:300])


def main() -> None:
    """Measure one number of trials after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", default="1000,10000")
    parser.add_argument("--arms", default="random,asha,two")
    parser.add_argument("--profile")
    options = parser.parse_args()
    arms = options.arms.split(",")
    with tempfile.TemporaryDirectory() as small:
        settings = Settings(home=Path(small), store_url=f"sqlite:///{small}/runs/nas_blockout.db", tracking_uri=None)
        with contextlib.redirect_stdout(io.StringIO()):
            run_small(resolve_document(document(arms, TEMPLATES), source="benchmark"), settings)
        print(
            "| trials an arm | part | CPU s | resident, MiB | peak, MiB | MB written |\n|---|---|---:|---:|---:|---:|",
            flush=True,
        )
        for trials in map(int, options.trials.split(",")):
            measure(arms, trials, Path(small), options.profile)


if __name__ == "__main__":
    main()
