"""One process at a time may tell somebody outside of a study, and a dead one holds nobody up."""

import subprocess
import threading
import time

import pytest

from services.store import LockTimeout, Store, StoreError
from tests.services.processes import process

HOLDER = """
import sys
from services.store import Store
with Store.open(sys.argv[1]) as store, store.sync_lock("example", "mlflow"):
    print("held", flush=True)
    input()
"""


def holder(url: str) -> "subprocess.Popen[str]":
    started = process(HOLDER, url)
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def test_a_second_process_is_refused_until_the_first_has_ended(store_url: str) -> None:
    with Store.open(store_url) as store, holder(store_url) as other:
        with (
            pytest.raises(LockTimeout, match="sending study 'example' to mlflow"),
            store.sync_lock("example", "mlflow"),
        ):
            pass
        with store.sync_lock("another", "mlflow"), store.sync_lock("example", "somebody"):
            pass
        other.communicate("\n")
        with store.sync_lock("example", "mlflow"):
            pass


def test_a_process_that_was_killed_holds_nobody_up(store_url: str) -> None:
    with holder(store_url) as other:
        other.kill()
    with Store.open(store_url) as store, store.sync_lock("example", "mlflow", wait_seconds=30):
        pass


def test_whoever_waits_comes_next(store_url: str) -> None:
    order: list[str] = []

    def wait() -> None:
        with Store.open(store_url) as other, other.sync_lock("example", "mlflow", wait_seconds=60):
            order.append("second")

    thread = threading.Thread(target=wait)
    with Store.open(store_url) as store, store.sync_lock("example", "mlflow"):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_it_is_let_go_by_an_error_too(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), store.sync_lock("example", "mlflow"):
            raise KeyError("example")
    with store.sync_lock("example", "mlflow"), pytest.raises(StoreError), store.sync_lock("example", "mlflow"):
        pass


def test_it_keeps_nobody_from_writing(store: Store, study: str) -> None:
    with store.sync_lock(study, "mlflow"):
        assert store.claim_study(study).state == "running"
