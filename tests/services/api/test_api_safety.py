"""What a stranger may try: hostile bodies, wrong tokens, too much; answers have one shape and tell no secret."""

import json
import logging
import time
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
import yaml

from services.api import application
from services.api.health import Probes, Unready
from services.api.requests.rate_limit import Buckets, Streams
from services.api.sessions import Sessions
from services.store import Store
from services.study_config.resolution import resolve_document

YAML = {"Content-Type": "application/yaml"}
BOMB = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b]\n"
HOSTILE = {
    "aliases": (BOMB, "aliases"),
    "deep flow": ("a: " + "[" * 5000, "nested at most 32 levels deep"),
    "deep block": ("\n".join(" " * depth + "a:" for depth in range(400)), "nested at most 32 levels deep"),
    "wide": ("a: [" + "1," * 60_000 + "1]", "at most 20000 values"),
    "digits": ("a: " + "9" * 10_000, "at most 200 digits"),
    "sexagesimal": ("a: " + "1:" * 5000 + "1", "at most 200 digits"),
    "large": ("a: 99999999999999999999", "fit into 64 bits"),
    "infinite": ("a: .inf", "numbers must be finite"),
    "nothing": ("a: .nan", "numbers must be finite"),
    "python": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "binary": ("a: !!binary aGk=", "got a bytes"),
    "date": ("a: 2026-01-01", "got a date"),
    "set": ("a: !!set {x}", "got a set"),
    "twice": ("a: 1\na: 2", "occurs twice"),
    "documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "nul": ('a: "\\0"', "NUL"),
    "surrogate": ('a: "\\ud800"', "character"),
    "bell": ("a: \x07", "characters are not allowed"),
    "list": ("- a", "the body must be a mapping, got list"),
    "nobody": ("", "the body must be a mapping, got NoneType"),
    "merge": ("<<: {a: 1}\n<<: {b: 2}", "merge"),
}
JSONS = {
    "deep": ("[" * 100_000, "nested"),
    "infinite": ('{"a": Infinity}', "numbers must be finite, got Infinity"),
    "overflow": ('{"a": 1e999}', "numbers must be finite, got inf"),
    "digits": ('{"a": ' + "9" * 10_000 + "}", "digits"),
    "twice": ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "surrogate": ('{"a": "\\ud800"}', "surrogate"),
    "cut off": ('{"a": ', "Expecting value"),
}


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """What is refused before it comes to the store needs one kind of it only."""
    return sqlite_store


def test_hostile_yaml_is_refused_soon_and_changes_nothing(ann, store, told):
    for name, (text, says) in HOSTILE.items():
        found = told(ann.post("/v1/studies", content=text.encode(), headers=YAML), 422, "malformed_body")
        assert says in found["message"], name
    assert store.queue() == ()


def test_hostile_json_is_refused_and_changes_nothing(ann, store, told):
    for name, (text, says) in JSONS.items():
        headers = {"Content-Type": "application/json"}
        found = told(ann.post("/v1/studies", content=text.encode(), headers=headers), 422, "malformed_body")
        assert says in found["message"], name
    assert store.queue() == ()


def test_other_bytes_and_other_kinds_are_refused(ann, told):
    told(ann.post("/v1/studies", content=b"a: \xff", headers=YAML), 422, "malformed_body")
    told(ann.post("/v1/studies", content=b"", headers=YAML), 422, "malformed_body")
    found = told(
        ann.post("/v1/studies", content=b"x", headers={"Content-Type": "image/png"}), 415, "unsupported_media_type"
    )
    assert (found["key"], found["value"]) == ("Content-Type", "image/png")


def test_a_large_body_is_refused_whether_or_not_it_says_so(client, limited, told):
    ann = client("ann", to=limited(api_body_bytes=1000))

    def chunks():
        for _ in range(50):
            yield b"#" * 100

    for content in (b"#" * 1001, chunks()):
        with ann.stream("POST", "/v1/studies", content=content, headers=YAML) as answer:
            answer.read()
            assert "the body must have at most 1000 bytes" in told(answer, 413, "too_large")["message"]
    told(ann.post("/v1/studies", content=b"#" * 1000, headers=YAML), 422, "malformed_body")


def test_who_has_no_valid_token_is_told_nothing(client, settings, store, told):
    row, revoked = store.create_token("", owner="ann", scope="write")
    store.revoke_token(row.id)
    stranger = client(None)
    headers = [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer nab_x"},
               {"Authorization": f"Bearer {revoked}"}, {"Authorization": f"Basic {settings.api_token}"},
               {"Authorization": f"Bearer {settings.api_token[:-1]}"},
               {"Authorization": b"Bearer \xff\xfe"}]  # fmt: skip
    for each in headers:
        for method, path in (("GET", "/v1/studies"), ("GET", "/v1/studies/tiny"), ("POST", "/v1/studies")):
            answer = stranger.request(method, path, headers=each)
            told(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_that_is_revoked_changes_nothing_more_and_reads_while_it_is_cached(client, caching, store, study, told):
    app, uncached = caching(token_seconds=3600.0), caching(token_seconds=0.0)
    ann, bob = client("ann", to=app), client("bob", to=app)
    for each in (ann, bob):
        assert each.get("/v1/studies").status_code == 200
    store.revoke_token(store.tokens("ann")[0].id)
    told(ann.post("/v1/studies", json=study), 401, "unauthorized")
    assert ann.get("/v1/studies").status_code == 200
    told(client(None, to=uncached).get("/v1/studies", headers=ann.headers), 401, "unauthorized")
    assert bob.post("/v1/studies", json=study).status_code == 201


def test_who_sent_a_request_just_now_is_known_without_the_database(client, caching, queries):
    app = caching(token_seconds=3600.0, max_tokens=2)
    clients = [client(owner, to=app) for owner in ("ann", "bob", "cid")]

    def asked() -> int:
        return sum("tokens.hash =" in statement for statement in queries)

    for each in clients:
        assert [each.get("/v1/studies").status_code for _ in range(5)] == [200] * 5
    assert asked() == 3
    assert clients[0].get("/v1/studies").status_code == 200
    assert asked() == 4  # of many, only so many are remembered


def test_the_secret_of_the_service_is_a_token_of_its_own_owner(client, settings, study):
    root = client(None)
    root.headers["Authorization"] = f"Bearer {settings.api_token}"
    assert root.post("/v1/studies", json=study).json()["owner"] == "admin"


def test_a_token_sends_so_many_requests_and_is_told_when_to_come_back(client, limited, told):
    app = limited(api_rate=1)
    ann, bob, nobody = client("ann", to=app), client("bob", to=app), client(None, to=app)
    statuses = [ann.get("/v1/studies").status_code for _ in range(8)]
    assert statuses[:4] == [200] * 4
    assert 429 in statuses
    answer = ann.get("/v1/studies")
    told(answer, 429, "too_many_requests")
    assert int(answer.headers["retry-after"]) >= 1
    assert bob.get("/v1/studies").status_code == 200
    assert [nobody.get("/v1/studies").status_code for _ in range(8)][-1] == 429


def test_paths_and_methods_that_are_not_there_have_the_same_shape(ann, told):
    for path in ("/nothing", "/v1/studies/", "/v1", "/docs", "/static/../app.py", "/static/service.css.bak"):
        told(ann.get(path), 404, "not_found")
    for method, path in (
        ("PATCH", "/v1/studies/tiny"),
        ("PUT", "/v1/studies"),
        ("POST", "/healthz"),
        ("X", "/healthz"),
    ):
        answer = ann.request(method, path)
        told(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]


def test_every_answer_has_the_headers_of_safety(ann):
    for path in ("/v1/studies", "/nothing", "/login", "/healthz", "/openapi.json"):
        headers = ann.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_a_database_that_is_away_is_named_without_its_address(client, settings, postgres, told):
    server = type(postgres)(postgres.programs)
    try:
        with Store.open(server.make_database(), retry_seconds=0.0) as store:
            away = client(None, to=application(settings, store, probes=Probes({})))
            server.kill()
            answer = away.get("/v1/studies", headers={"Authorization": f"Bearer {settings.api_token}"})
    finally:
        server.close()
    assert "cannot be reached; try again" in told(answer, 503, "unavailable")["message"]
    assert str(server.folder) not in answer.text
    assert answer.headers["retry-after"]


def test_what_nobody_foresaw_is_told_to_the_log_without_values(ann, store, study, told, caplog):
    ann.post("/v1/studies", json=study)
    with store._database.writing() as connection:  # as only a hand in the database can
        connection.execute(sa.text("UPDATE queue SET created_at = 'hunter22'"))
    answer = ann.get("/v1/studies/tiny")
    told(answer, 500, "internal")
    assert "hunter22" not in answer.text
    assert "hunter22" not in caplog.text
    assert "GET /v1/studies/tiny failed: ValueError at " in caplog.text


def test_logs_hold_who_changed_what_and_no_secret(ann, client, study, caplog):
    with caplog.at_level(logging.DEBUG, logger="nas_blockout.api"):
        ann.post("/v1/studies", json=study)
        ann.post("/v1/studies/tiny/cancel")
        client(None).get("/v1/studies", headers={"Authorization": "Bearer nab_mistyped"})
    assert "ann submitted tiny by token 1" in caplog.text
    assert "ann cancelled tiny by token 1" in caplog.text
    assert ann.headers["Authorization"].removeprefix("Bearer ") not in caplog.text
    assert "nab_mistyped" not in caplog.text


def test_health_asks_what_is_needed_each_within_its_time(settings, store, served):
    def refused() -> str:
        raise Unready("does not let us in")

    def broken() -> str:
        raise OSError("connect to 10.0.0.7 failed")

    def hangs() -> str:
        time.sleep(1.0)
        return "ok"

    def well() -> str:
        return "ok"

    asked = {"database": well, "ray": hangs, "mlflow": refused, "other": broken}
    app = application(settings, store, probes=Probes(asked, seconds=0.2))
    answer = httpx.get(served(app) + "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "services": {"database": "ok", "ray": "does not answer within 0.2 s", "mlflow": "does not let us in",
                     "other": "cannot be reached"},
    }  # fmt: skip
    assert httpx.get(served(app) + "/healthz").json() == {"status": "ok"}


def test_readiness_really_asks(settings, store, served):
    configured = replace(settings, ray_address="127.0.0.1:1", tracking_uri="http://127.0.0.1:1")
    answer = httpx.get(served(application(configured, store)) + "/readyz", timeout=20)
    assert answer.status_code == 503
    assert answer.json()["services"] == {"database": "ok", "ray": "cannot be reached", "mlflow": "cannot be reached"}
    answer = httpx.get(served(application(settings, store)) + "/readyz", timeout=20)
    assert (answer.status_code, answer.json()["services"]["ray"]) == (200, "off")


def test_numbers_for_prometheus_name_routes_and_no_paths(ann, study):
    ann.post("/v1/studies", json=study)
    ann.get("/v1/studies/tiny")
    ann.get("/made/up")
    answer = ann.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'nas_blockout_requests_total{method="GET",route="/v1/studies/{name}",status="200"} 1.0' in answer.text
    assert 'nas_blockout_studies{state="queued"} 1.0' in answer.text
    assert "made" not in answer.text
    assert "tiny" not in answer.text


def test_buckets_fill_up_with_time_and_not_beyond():
    buckets = Buckets(2.0, burst=2)
    assert [buckets.wait("a", now=0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert buckets.wait("b", now=0.0) == 0.0
    assert buckets.wait("a", now=0.5) == 0.0
    assert buckets.wait("a", now=0.5) > 0
    assert [buckets.wait("a", now=1000.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    for number in range(20_000):
        buckets.wait(number, now=2000.0)
    assert len(buckets._buckets) <= 10_000


def test_streams_are_counted_by_client():
    streams = Streams(max_open=2)
    assert [streams.enter("a"), streams.enter("a"), streams.enter("a"), streams.enter("b")] == [True, True, False, True]
    streams.leave("a")
    assert (streams.total, streams.enter("a")) == (2, True)


def test_a_session_is_known_by_its_cookie_and_the_secret_of_the_service(store):
    sessions, other = Sessions(store, "one"), Sessions(store, "two")
    cookie = sessions.open(7)
    key = sessions.key(cookie)
    assert key is not None
    assert store.session_token(key.digest) == 7
    for stranger in (other.key(cookie), sessions.key(cookie[:-1]), sessions.key(key.digest)):
        assert stranger is not None
        assert store.session_token(stranger.digest) is None
    assert [sessions.key(no_cookie) for no_cookie in ("", "ä" + cookie, "x" * 1000)] == [None] * 3
    assert sessions.proves(cookie, sessions.proof(cookie))
    assert not sessions.proves(cookie, other.proof(cookie))
    assert not sessions.proves(cookie, "\ud800")


def test_the_description_is_whole_and_has_examples(ann):
    described = ann.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            if path.startswith("/v1"):
                assert operation["security"] == [{"token": []}]
                shape = operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"]
                assert shape.endswith("/ErrorDocument")
    text = json.dumps(described)
    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(described["components"]["schemas"])
    assert described["components"]["schemas"]["StudyView"]["examples"][0]["name"] == "quickstart"


def test_every_body_is_described_by_an_example_that_is_valid(ann):
    described = ann.get("/openapi.json").json()
    schemas = described["components"]["schemas"]

    def shown(content):
        """The examples of a body, its own or those of its model."""
        schema = content["schema"].get("items", content["schema"])
        own = [each["value"] for each in content.get("examples", {}).values()]
        return own or schema.get("examples") or schemas[schema["$ref"].rpartition("/")[2]]["examples"]

    operations = [each for methods in described["paths"].values() for each in methods.values()]
    for operation in operations:
        for answer in operation["responses"].values():
            if content := answer.get("content", {}).get("application/json"):
                assert shown(content), operation["summary"]
    bodies = [each["requestBody"]["content"] for each in operations if "requestBody" in each]
    kinds = [sorted(body) for body in bodies]
    assert sorted(kinds) == [["application/json"], ["application/json"], ["application/json", "application/yaml"]]
    for kind, content in [pair for body in bodies for pair in body.items()]:
        for example in shown(content):
            if "assignments" not in example and "scope" not in example:  # a study
                document = yaml.safe_load(example) if kind == "application/yaml" else example
                assert resolve_document(document, source="example").name == "hello"
