"""Servers on the loopback, in threads of this process, that end with the test."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from services.api.app import server_config
from services.api.requests.connections import Room
from services.settings import Settings

ROOT_TOKEN = "q7Rz_0vLw2-Xb9TnYd4K"
# For clients of these servers, which speak plain HTTP: each would read the certificates of all authorities first.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def settings_of(home: Path, *, rate: int = 1000) -> Settings:
    """Return the settings of a service without MLflow that accepts `ROOT_TOKEN` and `rate` requests per second."""
    values = {"HOME": str(home), "API_TOKEN": ROOT_TOKEN, "TRACKING_URI": "none", "API_RATE": str(rate)}
    return Settings.from_environment({f"NAS_BLOCKOUT_{name}": value for name, value in values.items()})


@contextmanager
def serving(
    app: FastAPI, make: Callable[[uvicorn.Config], uvicorn.Server] = uvicorn.Server, *, room: Room | None = None
) -> Iterator[str]:
    """Serve an application as `serve api` does; yield its address once it has started."""
    # With its protocol named, as the service does: else each answer over a kept connection waits 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = server_config(app, room or Room(200))
        config.timeout_graceful_shutdown = 1
        server = make(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a web server that is not ours, without its log on stderr; yield its address."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])
