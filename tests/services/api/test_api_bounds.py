"""What one client may take of the service: size of a study, time of a check, requests, connections, memory."""

import hashlib
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from services.api import application
from services.api.health import Probes
from services.api.requests import request_body
from services.api.requests.connections import Room
from services.api.requests.submitted_study import checked
from services.files.study_dir import Folder
from services.settings import STUDY_LIMITS, Settings, SettingsError
from services.store import Store
from services.study_config.errors import StudyError
from tests.services.serving import NO_TLS, serving

HEAD = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
HTML = {"Accept": "text/html,*/*"}
Limits = tuple[tuple[str, int], ...]


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """What is refused before it comes to the store needs one kind of it only."""
    return sqlite_store


def limits(**changes: int) -> Limits:
    return tuple({**STUDY_LIMITS, **changes}.items())


TOO_LARGE: dict[str, tuple[dict[str, Any], Limits, str]] = {
    "arms": ({}, limits(arms=1), "arms"),
    "epochs": ({"training": {"epochs": 3}}, limits(epochs=2), "training.epochs"),
    "epochs of no end": ({"training": {"epochs": 2**62}}, limits(), "training.epochs"),
    "layers": ({"backbone": {"name": "convnet", "hidden": [8] * 5000}}, limits(), "backbone.hidden"),
    "parameters": ({"backbone": {"name": "convnet", "channels": [10_000, 10_000]}}, limits(), "backbone"),
    "addresses": ({"backbone": {"name": "convnet", "channels": [1_000_000] * 3}}, limits(), "backbone"),
    "trials": ({"budget": {"trainings": 4}}, limits(trials=7), "budget.trainings"),
    "trials for passes": ({"budget": {"sample_passes": 10**9}}, limits(), "budget.sample_passes"),
    "passes": ({"budget": {"sample_passes": 10**13, "trainings": 5}}, limits(), "budget.sample_passes"),
    "hours": ({"budget": {"seconds": 8e6}}, limits(), "budget.seconds"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_study_that_is_too_large_is_refused_with_its_key(settings, study, name):
    changes, most, key = TOO_LARGE[name]
    allowed = replace(settings, api_study_limits=most)
    checked(study, allowed if name not in ("arms", "trials") else settings)
    with pytest.raises(StudyError) as refused:
        checked({**study, **changes}, allowed)
    assert key in [violation.key for violation in refused.value.violations]


def test_limits_of_studies_are_those_of_the_operator():
    read = Settings.from_environment({"NAS_BLOCKOUT_API_STUDY_LIMITS": "arms=3, hours=1"})
    assert dict(read.api_study_limits) == {**STUDY_LIMITS, "arms": 3, "hours": 1}
    for wrong in ("arms=0", "arm=1", "arms", "arms=1,arms=2", "arms=1e3"):
        with pytest.raises(SettingsError, match="API_STUDY_LIMITS must be whole numbers"):
            Settings.from_environment({"NAS_BLOCKOUT_API_STUDY_LIMITS": wrong})


def test_an_extension_has_the_bounds_of_a_study(client, limited, store, study, told):
    ann = client("ann", to=limited(api_study_limits=limits(epochs=20, arms=2, trials=20)))
    assert ann.post("/v1/studies", json=study).status_code == 201
    ann.post("/v1/studies/tiny/cancel")
    for assignment, key in (
        ("budget.trainings=1000000", "budget.trainings"),
        ("arms.more={}", "arms"),
        ("arms.more={training: {epochs: 1000000000}}", "arms"),
    ):
        found = told(ann.post("/v1/studies/tiny/extend", json={"assignments": [assignment]}), 422, "invalid_study")
        assert found["key"] == key
    wide = client("ann", to=limited(api_study_limits=limits(parameters=1000)))
    sent = {"assignments": ["arms.wide={backbone: {channels: [64, 64]}}"]}
    found = told(wide.post("/v1/studies/tiny/extend", json=sent), 422, "invalid_study")
    assert "must have at most 1,000 parameters" in found["message"]


def wrong_keys(number: int) -> str:
    return yaml.safe_dump({**{f"key{each}": each for each in range(number)}, "arms": {}})


def arms(number: int) -> str:
    each: dict[str, Any] = {f"arm-{each}": {"extends": "amr"} for each in range(number)}
    return yaml.safe_dump({"schema_version": 2, "name": "wide", "arms": each})


def seconds_of(text: str, kind: str, settings: Settings) -> float:
    """Processor time of a check, at best."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        with pytest.raises((StudyError, request_body.RequestError)):
            checked(request_body.document(text.encode(), kind), settings)
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("make", [wrong_keys, arms])
def test_a_check_takes_time_in_proportion_to_the_document(settings, make: Callable[[int], str]):
    endless = replace(settings, api_study_limits=limits(arms=10**6))
    few, many = (seconds_of(make(number), "application/yaml", endless) for number in (400, 3200))
    assert many < 24 * few  # eight times as much; in quadratic time it would be sixty-four


def test_a_key_that_comes_twice_is_found_in_proportion_to_the_document(settings):
    def twice(number: int) -> str:
        return "{" + ",".join(f'"{each}": 0' for each in [*range(number), number - 1]) + "}"

    few, many = (seconds_of(twice(number), "application/json", settings) for number in (1000, 16_000))
    assert many < 64 * few


def exchange(address: str, sent: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes the connection."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.fixture
def bounded(settings: Settings, store: Store) -> Iterator[str]:
    """A service for few connections, which waits for a request only for a moment."""
    app = application(settings, store, probes=Probes({}))
    with serving(app, room=Room(20, request_seconds=0.5, write_seconds=0.5)) as address:
        yield address


def test_connections_that_do_not_finish_a_request_are_closed(bounded):
    with pytest.raises(ConnectionResetError):
        exchange(bounded, b"")
    late = exchange(bounded, HEAD)
    assert late.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(late.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


def test_a_request_that_trickles_in_is_cut_off(bounded):
    host, _, port = bounded.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.settimeout(0.05)
        heard = b""
        for byte in HEAD + b"X-Filler: " + b"x" * 2000:
            connection.send(bytes([byte]))
            try:
                heard = connection.recv(4096)
            except TimeoutError:
                continue
            break
    assert heard.startswith(b"HTTP/1.1 408")


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_idle_connections_make_room_for_requests(settings, store):
    app = application(settings, store, probes=Probes({}))
    with serving(app, room=Room(20, request_seconds=60.0)) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        idle = [socket.create_connection((host, int(port)), timeout=20) for _ in range(100)]
        try:
            for connection in idle[::2]:
                with suppress(ConnectionResetError, BrokenPipeError):  # of those that have made room already
                    connection.sendall(HEAD)
            for _ in range(3):
                assert httpx.get(address + "/healthz", timeout=20, verify=NO_TLS).status_code == 200
            assert is_closed(idle[0])  # who has waited longest has been let go
        finally:
            for connection in idle:
                connection.close()


def test_what_is_not_http_is_told_in_the_shape_of_all_errors(bounded):
    for sent, status in ((b"nonsense\r\n\r\n", 400), (HEAD + b"X: " + b"x" * 100_000, 431)):
        answer = exchange(bounded, sent)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_of_too_many_requests_those_that_are_new_are_refused_and_the_service_says_that_it_lives(
    client, settings, store, study, told
):
    app = application(settings, store, probes=Probes({}), max_requests=1)
    ann = client("ann", to=app)
    ann.post("/v1/studies", json=study)
    with ann.stream("GET", "/v1/studies/tiny/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry")
        busy = ann.get("/v1/studies")
        told(busy, 503, "busy")
        assert busy.headers["retry-after"] == "1"
        assert ann.get("/healthz").status_code == 200
        page = ann.get("/login", headers=HTML)
        assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")


def refused(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until the limit is reached, which is four requests at once."""
    return next(answer for _ in range(20) if (answer := ask()).status_code == 429)


def test_page_forms_and_metrics_are_limited_and_the_sign_of_life_is_not(client, limited, store, told):
    app = limited(api_rate=1)
    visitor, stranger = client(None, to=app), client(None, to=app)
    visitor.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    for path in ("/", "/parts/studies", "/metrics", "/nothing"):
        refused(lambda path=path: visitor.get(path))
    refused(lambda: visitor.post("/studies", data={"yaml": "a: 1"}))
    for path in ("/login", "/static/service.css", "/readyz", "/openapi.json"):
        refused(lambda path=path: stranger.get(path))
    refused(lambda: stranger.post("/login", data={"token": "nab_x"}))
    told(refused(lambda: stranger.get("/metrics")), 429, "too_many_requests")
    page = refused(lambda: stranger.get("/login", headers=HTML))
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert int(page.headers["retry-after"]) >= 1
    assert 'role="alert"' in page.text
    assert [stranger.get("/healthz").status_code for _ in range(20)] == [200] * 20


@pytest.mark.parametrize(("trusted", "last"), [("127.0.0.1", 200), ("10.0.0.1", 429)])
def test_clients_are_told_apart_behind_a_proxy_that_is_trusted_and_no_other(
    limited: Callable[..., FastAPI], monkeypatch: pytest.MonkeyPatch, trusted: str, last: int
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with serving(limited(api_rate=1)) as address, httpx.Client(base_url=address, verify=NO_TLS) as client:
        for number in range(8):
            # What the client itself claims stands before what the proxy adds.
            headers = {"X-Forwarded-For": f"198.51.100.1, 203.0.113.{number}"}
            status = client.get("/metrics", headers=headers).status_code
    assert status == last


@pytest.fixture
def model(ann, study, store: Store, settings) -> tuple[str, bytes]:
    """The address and the content of a file of a model."""
    content = bytes(range(256)) * (1 << 16)  # 16 MiB
    ann.post("/v1/studies", json=study)
    row = store.queued_study("tiny")
    store.create_study("tiny", config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
    trial = store.add_trial("tiny", arm="dense", phase="retrain", number=0, seed=3, experiment={}, planned=100).id
    store.start_attempt(trial)
    store.finish_trial(trial, "complete", score=0.5, result={})
    folder = Folder(settings.folder("tiny")).models / "dense"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    store.add_export(trial, path="x", hashes={"model.onnx": hashlib.sha256(content).hexdigest()}, verified=True)
    return "/v1/studies/tiny/models/dense/model.onnx", content


def test_a_download_goes_on_where_it_broke_off(ann, model, told):
    path, content = model
    whole = ann.get(path)
    assert (whole.content == content, whole.headers["accept-ranges"]) == (True, "bytes")
    rest = ann.get(path, headers={"Range": "bytes=16777000-", "If-Range": whole.headers["etag"]})
    assert (rest.status_code, rest.content) == (206, content[16777000:])
    assert rest.headers["content-range"] == f"bytes 16777000-{len(content) - 1}/{len(content)}"
    assert ann.get(path, headers={"Range": "bytes=0-9", "If-Range": '"another"'}).status_code == 200
    for wrong in ("bytes=99999999-", "bytes=x-y", "bytes=9-3"):
        refused = ann.get(path, headers={"Range": wrong})
        told(refused, 416, "invalid_range")
        assert refused.headers["content-range"] == f"bytes */{len(content)}"


def test_slow_readers_of_a_large_file_take_no_memory(ann, model):
    path, content = model
    begun, go_on = threading.Barrier(5), threading.Event()

    def read(client: httpx.Client) -> None:
        with client.stream("GET", path) as answer:
            chunks = answer.iter_raw(1024)
            next(chunks)
            begun.wait(30)
            go_on.wait(30)

    tracemalloc.start()
    try:
        readers = [threading.Thread(target=read, args=(ann,)) for _ in range(4)]
        for reader in readers:
            reader.start()
        begun.wait(30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        go_on.set()
        for reader in readers:
            reader.join()
    assert peak < len(content)  # of four of them not even one file


def test_a_client_that_does_not_read_is_let_go(settings, store, model, ann):
    path, _ = model
    app = application(settings, store, probes=Probes({}))
    with serving(app, room=Room(20, write_seconds=0.2)) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {ann.headers['Authorization']}\r\n\r\n"
            connection.sendall(head.encode())
            for _ in range(200):
                text = httpx.get(address + "/metrics").text
                if re.search(r'models/{arm}/{file}",status="200"} 1.0', text) and _closed(connection):
                    return
                time.sleep(0.05)
    pytest.fail("the connection is still open")


def _closed(connection: socket.socket) -> bool:
    """Whether the server has reset a connection, of which nothing is read."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
