"""What is said of accelerators: by the driver's own tool, which is played by a script here, and by torch."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas_blockout import devices
from nas_blockout.devices import Card, UsageMeter, cards, name_of, sharing_service

ROOT = Path(__file__).parents[2]


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


_STEPS = """
import resource, sys
import torch
from nas_blockout.devices import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    for number in range(4):  # memory that is freed at the end of the heap, and pieces too large for it
        pieces = [torch.ones((1 << 18) * (number + 1)) for _ in range(6)]
        large = torch.ones(12 << 20)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_memory_that_was_freed_is_used_again_without_asking_for_pages() -> None:
    pages = {
        kept: int(
            subprocess.run(
                [sys.executable, "-c", _STEPS, kept], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        for kept in ("keep", "give back")
    }
    # Not none: a system that reclaims memory which is not used at the moment takes pages from both.
    assert pages["keep"] < pages["give back"] / 5, pages
