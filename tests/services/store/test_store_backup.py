"""The commands of the guide to operations: what they back up they restore, on both kinds of database."""

import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from services.store import Store
from services.trial_record import Trial

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "operations.md"


def command(program: str, database: str) -> list[str]:
    """The words of the first command of the guide that runs a program on a database."""
    lines = re.findall(
        rf"^docker compose exec -T postgres ({program} .*{database}) [<>]", GUIDE.read_text(), re.MULTILINE
    )
    return shlex.split(lines[0])


def fill(store: Store) -> tuple[Trial, ...]:
    store.create_study("kept", config={"arms": ["a"]}, config_hash="cafe", arms=["a"])
    store.claim_study("kept")
    trial = store.add_trial("kept", arm="a", phase="search", number=0, seed=0, planned=30, experiment={"x": 1}).id
    store.start_attempt(trial)
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 10, "seconds": 1.0}])
    store.finish_trial(trial, "complete", score=0.5, result={"macs": 1})
    store.enqueue("queued", document={}, config_hash="beef", owner="me")
    store.create_token("mine", owner="me", scope="read")
    return store.trials("kept")


def everything(url: str) -> tuple[object, ...]:
    with Store.open(url) as store:
        trials = store.trials("kept")
        return trials, [store.epochs(row.id) for row in trials], store.queued_study("queued"), store.tokens("me")


def test_a_dump_of_postgresql_is_restored_over_what_came_later(postgres, tmp_path: Path) -> None:
    url = postgres.make_database()
    with Store.open(url) as store:
        fill(store)
    before = everything(url)

    def run(words: list[str], **streams: object) -> None:
        name = str(make_url(url).database)
        here = [word.replace("nas_blockout", name).replace("=postgres", "=tester") for word in words[1:]]
        programs = (postgres.programs / "initdb").resolve().parent
        done = subprocess.run([programs / words[0], f"--host={postgres.folder}", *here], **streams)
        assert done.returncode == 0

    with (tmp_path / "dump").open("wb") as file:
        run(command("pg_dump", "nas_blockout"), stdout=file)
    with Store.open(url) as store:
        store.create_study("later", config={}, config_hash="babe", arms=["a"])
    with (tmp_path / "dump").open("rb") as file:
        run(command("pg_restore", "nas_blockout"), stdin=file)
    assert everything(url) == before
    with Store.open(url) as store:
        assert [line.name for line in store.studies()] == ["kept"]
        assert store.claim_study("kept", "another:1", stale_seconds=0.0).state == "running"


def test_a_sqlite_store_is_copied_while_it_is_written(tmp_path: Path) -> None:
    words = shlex.split(re.findall(r"^python (-c .*)$", GUIDE.read_text(), re.MULTILINE)[0])[:2]
    source, copy = tmp_path / "store.db", tmp_path / "copy.db"
    url = f"sqlite:///{source}"
    with Store.open(url) as store:
        fill(store)
        before = everything(url)
        with sqlite3.connect(source) as writer:
            writer.execute("BEGIN IMMEDIATE")
            done = subprocess.run([sys.executable, *words, str(source), str(copy)], capture_output=True, check=False)
        writer.close()
    assert done.returncode == 0, done.stderr
    assert everything(f"sqlite:///{copy}") == before


@pytest.mark.parametrize("database", ["nas_blockout", "mlflow"])
def test_what_is_dumped_is_restored_for_every_database(database: str) -> None:
    assert command("pg_dump", database)[-1] == database
    assert command("pg_restore", database)[-1] == f"--dbname={database}"
