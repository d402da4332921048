"""The whole OpenAPI, sent what it allows and what it does not: no server error, only answers that it describes.

``FUZZ_EXAMPLES=1000 pytest -s tests/services/api/test_api_fuzz.py`` sends more, and says how it was answered.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.api import application, description
from services.api.health import Probes
from services.store import Store
from services.study_config.resolution import resolve_document
from tests.services.serving import ROOT_TOKEN, serving, settings_of
from tests.services.tiny import TINY

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a store that holds a study which has ended."""
    home = tmp_path_factory.mktemp("fuzz")
    study = resolve_document(TINY, source="example")
    with Store.open(f"sqlite:///{home}/store.db") as store:
        document = study.to_json()
        store.enqueue("tiny", document=document, config_hash=study.hash, owner="admin", source=TINY)
        store.acquire_lease("one", seconds=60)
        store.create_study("tiny", config=document, config_hash=study.hash, arms=list(study.arms))
        store.finish_study("tiny", "complete")
        store.finish_queued("tiny", "one", "complete")
        with serving(application(settings_of(home, rate=100_000), store, probes=Probes({}))) as found:
            yield found
            if "FUZZ_EXAMPLES" in os.environ:
                sys.stdout.write(f"\nanswers by status: {answered(found)}\n")


@pytest.fixture(scope="module")
def connection() -> Iterator[requests.Session]:
    """Keeps one connection for 4,000 requests, and looks for no proxy before each."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


def answered(address: str) -> dict[str, int]:
    """How many requests the service has answered with each status, by its own numbers."""
    found: Counter[str] = Counter()
    numbers = httpx.get(f"{address}/metrics", timeout=30).text
    for status, number in re.findall(r'^nas_blockout_requests_total\{.*status="(\d+)"\} (\S+)$', numbers, re.MULTILINE):
        found[status] += int(float(number))
    return dict(sorted(found.items()))


schema = schemathesis.openapi.from_dict(description())


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_is_described(
    case: schemathesis.Case, address: str, connection: requests.Session
) -> None:
    for name in (None, "tiny"):
        if name is not None and "name" not in case.path_parameters:
            return
        if name is not None:
            case.path_parameters["name"] = name
        told = {"Authorization": f"Bearer {ROOT_TOKEN}"}
        answer = case.call(base_url=address, headers=told, timeout=30, session=connection)
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
    assert len(paths) == 23
