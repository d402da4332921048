"""The whole OpenAPI, sent what it allows and what it does not: no server error, only answers that it describes.

``FUZZ_EXAMPLES=1000 pytest -s tests/services/api/test_api_fuzz.py`` sends more, and says how it was answered.
"""

import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.api import application, description
from services.api.health import Probes
from services.settings import Settings
from services.store import Store
from services.study_config.resolution import parse, resolve

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
ROOT = "q7Rz_0vLw2-Xb9TnYd4K"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLE = {
    "schema_version": 2,
    "name": "tiny",
    "data": {"name": "digits", "train_samples": 50},
    "budget": {"sample_passes": 300},
    "arms": {"dense": {}},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a store that holds a study which has ended."""
    home = tmp_path_factory.mktemp("fuzz")
    values = {"HOME": str(home), "API_TOKEN": ROOT, "TRACKING_URI": "none", "API_RATE": "100000"}
    known = Settings.from_environment({f"NAS_BLOCKOUT_{name}": value for name, value in values.items()})
    study = resolve(parse(EXAMPLE, source="example"), source="example")
    with Store.open(f"sqlite:///{home}/store.db") as store:
        document = study.to_json()
        store.enqueue("tiny", document=document, config_hash=study.hash, owner="admin", source=EXAMPLE)
        store.acquire_lease("one", seconds=60)
        store.create_study("tiny", config=document, config_hash=study.hash, arms=["dense"])
        store.finish_study("tiny", "complete")
        store.finish_queued("tiny", "one", "complete")
        with serving(application(known, store, probes=Probes({}))) as found:
            yield found
            if "FUZZ_EXAMPLES" in os.environ:
                sys.stdout.write(f"\nanswers by status: {answered(found)}\n")


def answered(address: str) -> dict[str, int]:
    """How many requests the service has answered with each status, by its own numbers."""
    found: Counter[str] = Counter()
    numbers = httpx.get(f"{address}/metrics", timeout=30).text
    for status, number in re.findall(r'^nas_blockout_requests_total\{.*status="(\d+)"\} (\S+)$', numbers, re.MULTILINE):
        found[status] += int(float(number))
    return dict(sorted(found.items()))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


schema = schemathesis.openapi.from_dict(description())


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(case: schemathesis.Case, address: str) -> None:
    for name in (None, "tiny"):
        if name is not None and "name" not in case.path_parameters:
            return
        if name is not None:
            case.path_parameters["name"] = name
        answer = case.call(base_url=address, headers={"Authorization": f"Bearer {ROOT}"}, timeout=30)
        case.validate_response(answer, checks=CHECKS)


def test_everything_is_described() -> None:
    paths = set(description()["paths"])
    assert {
        "/v1/studies",
        "/v1/studies/{name}",
        "/v1/studies/{name}/events",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= paths
    assert len(paths) == 15
