"""The health check of the containers: what it asks, what it takes for well, and that it needs nothing installed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from services import healthcheck
from tests.services.serving import answering

TOKEN = "t" * 32


class Handler(BaseHTTPRequestHandler):
    """Lets in who brings the token."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def address() -> Iterator[str]:
    with answering(Handler) as found:
        yield f"{found}/"


def test_a_server_that_lets_us_in_is_well(address: str) -> None:
    assert healthcheck.ask(address, token=TOKEN) is None
    assert healthcheck.ask(address, token="other") == f"{address} answers 401 Unauthorized"
    assert healthcheck.ask(address) == f"{address} answers 401 Unauthorized"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "https://127.0.0.1:9/", "file:///etc/passwd", "http://[/"])
def test_what_does_not_answer_is_not_well(url: str) -> None:
    assert healthcheck.ask(url, seconds=2.0)


def test_a_file_is_fresh_for_so_long(tmp_path: Path) -> None:
    path = tmp_path / "pulse"
    assert healthcheck.fresh(path, seconds=60) == f"{path}: No such file or directory"
    path.touch()
    assert healthcheck.fresh(path, seconds=60) is None
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert "was last touched 100 s ago, not within 60 s" in str(healthcheck.fresh(path, seconds=60))


def test_the_command_ends_as_what_it_asked(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET", TOKEN)
    assert healthcheck.main([address, "--token", "SECRET"]) == 0
    assert healthcheck.main([address, "--token", "UNSET"]) == 1
    path = tmp_path / "secret"
    path.write_text(f"{TOKEN}\n", encoding="utf-8")
    monkeypatch.setenv("UNSET_FILE", str(path))
    assert healthcheck.main([address, "--token", "UNSET"]) == 0
    assert "answers 401" in capsys.readouterr().err
    pulse = tmp_path / os.uname().nodename
    pulse.touch()
    assert healthcheck.main([str(tmp_path / "{host}"), "--seconds", "60"]) == 0
    pulse.unlink()
    assert healthcheck.main([str(tmp_path / "{host}")]) == 1


def test_it_imports_the_standard_library_alone(tmp_path: Path) -> None:
    root = Path(healthcheck.__file__).parents[1]
    code = (
        "import sys, services.healthcheck; print({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(root)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("{'services', '__main__'}", "{'__main__', 'services'}")
