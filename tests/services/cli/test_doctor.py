"""What `doctor` says of services: whether they answer, let us in, have our versions and our time."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from services.cli.doctor import SERVICES, Finding, examine
from services.settings import Settings
from services.store import Store
from tests.services.serving import ROOT_TOKEN, answering

Serve = Callable[..., str]
KNOWN = 0  # stands for an answer that needs the token


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that gives fixed answers by path, with a clock of its own; returns its address."""
    stack = ExitStack()

    def start(answers: dict[str, tuple[int, Any]], *, ahead: float = 0.0) -> str:
        class Handler(BaseHTTPRequestHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:
                return format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)

            def do_GET(self) -> None:
                status, body = answers.get(self.path.partition("?")[0], (404, "no such page"))
                if status == KNOWN:
                    status = 200 if self.headers["Authorization"] == f"Bearer {ROOT_TOKEN}" else 401
                content = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return stack.enter_context(answering(Handler))

    with stack:
        yield start


def findings(settings: Settings, *, api: str | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(settings, api=api)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    environment = {"NAS_BLOCKOUT_HOME": str(tmp_path), "NAS_BLOCKOUT_TRACKING_URI": "none"}
    return Settings.from_environment(environment)


def test_an_api_that_is_ready_is_well_and_so_is_its_clock(serve: Serve, settings: Settings) -> None:
    results = findings(settings, api=serve({"/readyz": (200, {"ready": True})}))
    assert results["API"].ok
    assert results["clock of API"].ok
    assert results["clock of store"].ok


def test_an_api_that_is_not_ready_says_what_is_missing(serve: Serve, settings: Settings) -> None:
    finding = findings(settings, api=serve({"/readyz": (503, {"ready": False, "services": {"ray": "away"}})}))["API"]
    assert not finding.ok
    assert '"ray": "away"' in finding.found


@pytest.mark.parametrize(("token", "ok"), [(ROOT_TOKEN, True), (ROOT_TOKEN[::-1], False)])
def test_the_token_of_the_service_is_tried_where_it_is_set(
    serve: Serve, settings: Settings, token: str, ok: bool
) -> None:
    address = serve({"/readyz": (200, ""), "/v1/studies": (KNOWN, "")})
    finding = findings(replace(settings, api_token=token), api=address)["API token"]
    assert (finding.ok, finding.what in SERVICES) == (ok, True)
    assert token not in finding.found + finding.remedy
    assert "API token" not in findings(settings, api=address)


def test_shared_storage_is_written_read_and_cleared(settings: Settings, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert findings(replace(settings, artifacts=f"file://{shared}"))["shared storage"].ok
    assert list(shared.iterdir()) == []
    finding = findings(replace(settings, artifacts="file:///dev/null/x"))["shared storage"]
    assert not finding.ok
    assert "NAS_BLOCKOUT_ARTIFACTS" in finding.remedy
    assert finding.what in SERVICES


@pytest.mark.parametrize(("answers", "words"), [({}, "answers 404"), (None, "does not answer")])
def test_what_is_no_api_is_bad_with_a_remedy(
    serve: Serve, settings: Settings, answers: dict[str, tuple[int, Any]] | None, words: str
) -> None:
    finding = findings(settings, api="http://127.0.0.1:9" if answers is None else serve(answers))["API"]
    assert not finding.ok
    assert words in finding.found
    assert "nas-blockout serve api" in finding.remedy
    assert finding.what in SERVICES


@pytest.mark.parametrize(("ahead", "word"), [(90.0, "ahead of"), (-90.0, "behind")])
def test_a_clock_that_is_wrong_is_found(serve: Serve, settings: Settings, ahead: float, word: str) -> None:
    finding = findings(settings, api=serve({"/readyz": (200, "")}, ahead=ahead))["clock of API"]
    assert not finding.ok
    assert word in finding.found
    assert "NTP" in finding.remedy


@pytest.fixture
def ray_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the test's own, so that it finds the same with and without one in the developer's home."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)


def jobs(serve: Serve, settings: Settings, *, version: str, status: int = 200) -> dict[str, Finding]:
    node = {"state": "ALIVE", "resources_total": {"CPU": 4.0}}
    answers = {
        "/api/version": (status, {"version": "4", "ray_version": version, "ray_commit": "", "session_name": ""}),
        "/api/v0/nodes": (status, {"data": {"result": {"result": [node]}}}),
        "/api/gcs_healthz": (200, "success"),
    }
    return findings(replace(settings, jobs_address=serve(answers)))


@pytest.mark.usefixtures("ray_token")
def test_a_cluster_says_what_it_has_and_its_version(serve: Serve, settings: Settings) -> None:
    results = jobs(serve, settings, version=metadata.version("ray"))
    assert results["Ray jobs"].ok
    assert "4 CPUs and 0 GPUs" in results["Ray jobs"].found
    assert results["Ray's cluster"].ok
    assert results["clock of Ray"].ok


@pytest.mark.usefixtures("ray_token")
def test_a_cluster_of_another_version_is_bad(serve: Serve, settings: Settings) -> None:
    finding = jobs(serve, settings, version="2.40.0")["Ray's cluster"]
    assert not finding.ok
    assert finding.found == f"2.40.0, but {metadata.version('ray')} is installed here"
    assert "constraints.txt" in finding.remedy


def test_a_cluster_that_is_away_is_bad(settings: Settings) -> None:
    finding = findings(replace(settings, jobs_address="http://127.0.0.1:9"))["Ray jobs"]
    assert not finding.ok
    assert "RAY_AUTH_TOKEN" in finding.remedy


def test_the_clock_of_the_database_is_compared(store: Store) -> None:
    assert abs(store.clock_offset()) < 5.0


class TestAccelerators:
    """What is said of cards, which the driver's tool, played by a script, and torch each report."""

    @pytest.fixture
    def card(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        command = tmp_path / "tools" / "nvidia-smi"
        command.parent.mkdir()
        command.write_text("#!/bin/sh\necho '0, NVIDIA H100, 81559, 580.65.06'\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent), prepend=":")

    @staticmethod
    def said(settings: Settings) -> list[Finding]:
        return [finding for finding in examine(settings) if finding.what == "accelerators"]

    def test_without_a_card_studies_run_on_the_processor(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        (finding,) = self.said(settings)
        assert finding.ok
        assert "studies run on the processor" in finding.found

    @pytest.mark.usefixtures("card")
    def test_a_card_beside_a_torch_without_cuda_is_a_fault(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.version.cuda", None)
        card, fault = self.said(settings)
        assert card.ok
        assert card.found == "NVIDIA H100, 80 GiB, driver 580.65.06"
        assert not fault.ok
        assert "built without CUDA" in fault.found
        assert "gpu-server.md" in fault.remedy

    @pytest.mark.usefixtures("card")
    def test_a_driver_that_is_too_old_for_torch_is_a_fault(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.version.cuda", "13.0")
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        _, fault = self.said(settings)
        assert not fault.ok
        assert fault.found == "torch is built for CUDA 13.0 and cannot use the driver 580.65.06"

    @pytest.mark.usefixtures("card")
    def test_a_card_that_torch_uses_is_well(
        self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.version.cuda", "13.0")
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
        (tmp_path / "control").touch()
        assert all(finding.ok for finding in self.said(settings))
        assert "CUDA 13.0; NVIDIA's Multi-Process Service runs" in self.said(settings)[-1].found
