"""One process at a time may tell somebody outside of a study, and a dead one holds nobody up."""

import subprocess
import sys
import threading
import time

import pytest

from services.store import Store, StoreError, Taken

HOLDER = """
import sys
from services.store import Store
with Store.open(sys.argv[1]) as store, store.telling("example", "mlflow"):
    print("held", flush=True)
    input()
"""


def holder(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_has_ended(store_url: str) -> None:
    with Store.open(store_url) as store, holder(store_url) as process:
        with pytest.raises(Taken, match="telling mlflow of study 'example'"), store.telling("example", "mlflow"):
            pass
        with store.telling("another", "mlflow"), store.telling("example", "somebody"):
            pass
        process.communicate("\n")
        with store.telling("example", "mlflow"):
            pass


def test_a_process_that_was_killed_holds_nobody_up(store_url: str) -> None:
    with holder(store_url) as process:
        process.kill()
    with Store.open(store_url) as store, store.telling("example", "mlflow", patience=30):
        pass


def test_whoever_waits_comes_next(store_url: str) -> None:
    order: list[str] = []

    def wait() -> None:
        with Store.open(store_url) as other, other.telling("example", "mlflow", patience=60):
            order.append("second")

    thread = threading.Thread(target=wait)
    with Store.open(store_url) as store, store.telling("example", "mlflow"):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_it_is_let_go_by_an_error_too(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), store.telling("example", "mlflow"):
            raise KeyError("example")
    with store.telling("example", "mlflow"), pytest.raises(StoreError), store.telling("example", "mlflow"):
        pass


def test_it_keeps_nobody_from_writing(store: Store, study: str) -> None:
    with store.telling(study, "mlflow"):
        assert store.claim_study(study).state == "running"
