"""What every test stands on: one thread, none of the developer's own settings, and examples that repeat.

`pytest --hypothesis-profile=explore` draws fresh and many more examples.
"""

import os

# Before torch is imported by any test, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

FOREIGN = ("NAS_BLOCKOUT_", "MLFLOW_", "RAY_", "COLUMNS", "LINES")


def pytest_configure() -> None:
    """Forget what the shell says of services and of its size: a test that needs it sets it itself."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it once a process, whichever test imports it first
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)
    hypothesis.settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None)
    hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first: begun last, one of them would keep a single worker busy to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
