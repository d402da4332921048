"""What is said of accelerators: by the driver's own tool, which is played by a script here, and by torch."""

import os
from pathlib import Path

import pytest
import torch

from nas_blockout import devices
from nas_blockout.devices import Card, UsageMeter, cards, name_of, sharing_service


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command named nvidia-smi in front of the others."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_every_card_is_named_with_memory_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(
        tmp_path,
        "echo '0, NVIDIA H100 80GB HBM3, 81559, 580.65.06'; echo '1, NVIDIA A2, 15356, 580.65.06'",
        monkeypatch,
    )
    assert cards() == [
        Card(0, "NVIDIA H100 80GB HBM3", 81559 << 20, "580.65.06"),
        Card(1, "NVIDIA A2", 15356 << 20, "580.65.06"),
    ]


@pytest.mark.parametrize(
    "script",
    [
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
        "echo 'No devices were found'; exit 6",
        "echo '0, NVIDIA H100, [Unknown Error], 580.65.06'",
        "exit 0",
    ],
)
def test_a_driver_that_has_no_answer_has_no_cards(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, script, monkeypatch)
    assert cards() == []


def test_without_the_tool_there_are_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cards() == []


def test_a_tool_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(devices, "_TIMEOUT_SECONDS", 0.2)
    assert cards() == []


def test_the_sharing_service_is_found_by_its_pipe(tmp_path: Path) -> None:
    assert not sharing_service(tmp_path)
    (tmp_path / "control").touch()
    assert sharing_service(tmp_path)


def test_on_a_processor_its_memory_is_measured_and_no_card_is_claimed() -> None:
    meter = UsageMeter("cpu")
    held = torch.ones(30_000_000)  # 120 MB
    usage = meter.read()
    meter.stop()
    assert (usage.device, usage.device_bytes, usage.utilization) == (name_of("cpu"), None, None) == ("cpu", None, None)
    assert usage.host_bytes > held.nbytes


def test_usage_is_plain_json() -> None:
    usage = UsageMeter("cpu").read()
    assert usage.to_json() == {
        "device": "cpu",
        "device_bytes": None,
        "host_bytes": usage.host_bytes,
        "utilization": None,
    }
