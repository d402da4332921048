"""Tests of the library on an accelerator: ``make test-gpu``. They need torch, pytest and scikit-learn, and no more.

``--device cpu`` tries the tests themselves where there is no accelerator: those that hold on any device pass there.
"""

import pytest
import torch

from nas_blockout.data import DataSettings, Splits, load


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="device to test on, such as cuda:1")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device", default="cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return chosen


@pytest.fixture(scope="session")
def card(device: torch.device) -> torch.device:
    """The device, for what only an accelerator can show."""
    if device.type != "cuda":
        pytest.skip("only a CUDA device can show it")
    return device


@pytest.fixture(scope="session")
def splits() -> Splits:
    return load(DataSettings("digits", train_samples=300, validation_samples=200))
