"""What every test stands on: one thread, none of the developer's own settings, and examples that repeat.

`pytest --hypothesis-profile=explore` draws fresh and many more examples.
"""

import gc
import os
from pathlib import Path

# Before torch is imported by any test, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

FOREIGN = ("NAS_BLOCKOUT_", "MLFLOW_", "RAY_", "COLUMNS", "LINES")


def pytest_configure() -> None:
    """Forget what the shell says of services and of its size: a test that needs it sets it itself."""
    gc.disable()  # until all tests are collected: nothing that is imported ever becomes garbage
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it once a process, whichever test imports it first
    # 15 by itself: the short tests would starve the trials of the long ones.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray's own spelling
    # Else each driver has as many workers started as its node has processors, beside those that are ready already.
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
    torch.set_num_threads(1)
    torch.set_warn_always(True)  # some warnings come once a process: which test they failed depended on the order
    hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)
    hypothesis.settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None)
    hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, the longest ahead: begun last, it would keep one worker to the end.

    Whole studies, which wait for a dozen processes beside those of other tests, get their time on a slow machine, too.
    """
    seconds: dict[Path, float] = {}
    for item in items:
        if item.get_closest_marker("end_to_end") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))
        if (slow := item.get_closest_marker("slow")) is not None:
            seconds[item.path] = max(seconds.get(item.path, 0), *slow.args, 1)
    items.sort(key=lambda item: -seconds.get(item.path, 0))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what has been imported: to look through it is a tenth of many a test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()
