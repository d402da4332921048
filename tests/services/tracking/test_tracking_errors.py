"""What MLflow's errors are called: only what does not answer is said not to answer, and no message has a password."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

from services.store import Store
from services.tracking import Projection, TrackingError, TrackingUnreachable, check
from tests.services.serving import answering, closed_port
from tests.services.tracking.example import ARMS, CONFIG

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@contextmanager
def deaf_server() -> Iterator[int]:
    """A server that hangs up on whoever calls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def hang_up() -> None:
            while not ended.is_set():
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            ended.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_that_is_away_is_one_error_without_its_password(name: str, store: Store) -> None:
    address = f"http://someone:hunter2@127.0.0.1:{closed_port()}"
    for reach in (check, lambda uri: Projection(uri, name, CONFIG, store)):
        with pytest.raises(TrackingUnreachable, match="MLflow does not answer at http://someone:") as caught:
            reach(address)
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_server_that_hangs_up_is_the_same_error() -> None:
    with deaf_server() as port, pytest.raises(TrackingUnreachable, match=f"127.0.0.1:{port}"):
        check(f"http://127.0.0.1:{port}")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database\n" * 200)
    with pytest.raises(TrackingError, match=r"MLflow's database sqlite:///.* cannot be used: .*not a database"):
        check(f"sqlite:///{tmp_path / 'mlflow.db'}")


@contextmanager
def saying(status: int, text: str) -> Iterator[str]:
    """A server that gives the same answer to whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815  # the name is given

    with answering(Handler) as address:
        yield address


REFUSED = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "max_results must be at most 3"})


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "You are not authenticated", "refuses access: .*not authenticated.*; set MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "refuses access: .*Permission denied.*; set MLFLOW_TRACKING_USERNAME"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "refuses access: .*--allowed-hosts"),
        (400, REFUSED, "did not do what it was asked: .*max_results must be at most 3"),
        (200, "<p>not MLflow</p>", "did not do what it was asked: .*not MLflow"),
    ],
)
def test_what_answers_is_not_said_to_be_away(status: int, text: str, message: str) -> None:
    with saying(status, text) as address, pytest.raises(TrackingError, match=message) as caught:
        check(address)
    assert not isinstance(caught.value, TrackingUnreachable)
    assert "does not answer" not in str(caught.value)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_whose_server_is_away_does_not_answer(status: int) -> None:
    with saying(status, "Bad Gateway") as address, pytest.raises(TrackingUnreachable, match="does not answer"):
        check(address)


def test_files_that_cannot_be_written_are_named(uri: str, name: str, store: Store, tmp_path: Path) -> None:
    projection = Projection(uri, name, CONFIG, store)
    (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").write_text("in the way")
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(TrackingError, match=r"files for MLflow at .* cannot be read or written: .*mlartifacts"):
        projection.finish(ARMS, tmp_path)


def test_standard_output_is_left_to_results(
    uri: str, name: str, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    Projection(uri, name, CONFIG, store).sync()
    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get(), "a server's client would print two lines for each run"
    assert capfd.readouterr().out == ""
