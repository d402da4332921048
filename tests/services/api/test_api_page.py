"""The page without a browser: sessions, forms that only this site sends, errors in place, parts that refresh."""

import re
import time
from datetime import UTC, datetime

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
import yaml

from services.store import PAGES_TARGET, Store, Waiting
from tests.services.serving import serving

FOR_LONG = 600.0


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """The store itself is tested on both of its databases elsewhere."""
    return sqlite_store


@pytest.fixture
def visitor(client, store) -> httpx.Client:
    """Somebody who has logged in to the page as ann."""
    found = client(None)
    answer = found.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return found


def proof(client: httpx.Client, path: str = "/") -> str:
    found = re.search(r'name="proof" value="([0-9a-f]{64})"', client.get(path).text)
    assert found is not None
    return found[1]


def send(client: httpx.Client, path: str, **fields: str) -> httpx.Response:
    return client.post(path, data={"proof": proof(client), **fields})


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_see(client, store):
    answer = client(None).post("/login", data={"token": store.create_token("", owner="ann", scope="read")[1]})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Max-Age=43200" in cookie
    assert "nab_" not in cookie


def test_who_has_not_logged_in_is_sent_to_the_form(client):
    stranger = client(None)
    for path in ("/", "/studies/tiny"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert stranger.get("/parts/studies", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/login"
    answer = stranger.post("/login", data={"token": "nab_wrong"})
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "nab_wrong" not in answer.text
    assert "set-cookie" not in answer.headers


def test_a_session_ends_with_its_token_and_by_logging_out(visitor, store):
    assert visitor.get("/").status_code == 200
    send(visitor, "/logout")
    assert visitor.get("/").status_code == 303
    row, secret = store.create_token("", owner="ann", scope="write")
    visitor.post("/login", data={"token": secret})
    assert visitor.get("/").status_code == 200
    store.revoke_token(row.id)
    assert visitor.get("/").status_code == 303


def test_logging_out_ends_the_session_on_the_server(visitor, client, store, told):
    copy = client(None)
    copy.cookies.update(visitor.cookies)
    assert copy.get("/").status_code == 200
    assert copy.get("/v1/studies").status_code == 200
    send(visitor, "/logout")
    assert copy.get("/").status_code == 303
    told(copy.get("/v1/studies"), 401, "unauthorized")
    assert [(row.action, row.actor) for row in store.audit_log()] == [("logout", "ann"), ("login", "ann")]


def test_a_stream_of_a_session_ends_with_it(visitor, caching, client, store, study):
    app = caching(heartbeat_seconds=0.05)
    store.enqueue("tiny", document=study, config_hash="a", owner="ann")
    follower = client(None, to=app)
    follower.cookies.update(visitor.cookies)
    with follower.stream("GET", "/v1/studies/tiny/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        send(visitor, "/logout")
        assert all("end" not in line for line in lines)  # it ends at all


def test_the_cookie_is_secure_where_a_trusted_proxy_has_tls(app, store):
    token = store.create_token("", owner="ann", scope="read")[1]
    for proto, trusted, secure in (("https", "127.0.0.1", True), ("https", "10.0.0.1", False), ("http", "*", False)):
        with serving(app, lambda config, trusted=trusted: _trusting(config, trusted)) as address:
            headers = {"X-Forwarded-Proto": proto}
            answer = httpx.post(f"{address}/login", data={"token": token}, headers=headers)
            assert answer.status_code == 303
            assert ("Secure" in answer.headers["set-cookie"]) is secure


def _trusting(config: uvicorn.Config, hosts: str) -> uvicorn.Server:
    config.forwarded_allow_ips = hosts
    return uvicorn.Server(config)


def test_a_session_reads_the_api_and_does_not_write_to_it(visitor, study, told):
    assert visitor.get("/v1/studies").json()["studies"] == []
    told(visitor.post("/v1/studies", json=study), 401, "unauthorized")


def test_a_form_of_another_site_or_session_changes_nothing(visitor, client, store, study, told):
    text = yaml.safe_dump(study)
    fields = {"yaml": text, "proof": proof(visitor)}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        told(visitor.post("/studies", data=fields, headers=headers), 403, "other_site")
        told(visitor.post("/login", data={"token": "x"}, headers=headers), 403, "other_site")
    for wrong in ("", "0" * 64, "é"):
        told(visitor.post("/studies", data={**fields, "proof": wrong}), 403, "other_site")
    told(visitor.post("/studies", content=b"\xff=1"), 422, "malformed_body")
    assert store.queue() == ()
    same = {"Origin": str(visitor.base_url), "Sec-Fetch-Site": "same-origin"}
    assert visitor.post("/studies", data=fields, headers=same).status_code == 303


def test_a_bundled_study_is_submitted_under_a_name_of_ones_own(visitor, store):
    answer = send(visitor, "/studies", bundled="quickstart", name="mine")
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/mine")
    row = store.queued_study("mine")
    assert (row.owner, next(iter(row.document["arms"]))) == ("ann", "dense")
    assert "mine" in visitor.get("/").text


def test_the_same_form_sent_twice_is_one_study(visitor, study, store):
    fields = {"yaml": yaml.safe_dump(study), "key": "k", "proof": proof(visitor)}
    for _ in range(2):
        assert visitor.post("/studies", data=fields).headers["location"] == "/studies/tiny"
    assert len(store.queue()) == 1


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({}, 422, "choose a bundled study, or enter one as YAML"),
        ({"bundled": "../../etc/passwd"}, 422, "there is no bundled study"),
        ({"yaml": "budgte: 3"}, 422, "budgte: no such key"),
        ({"yaml": "a: [<script>alert(1)</script>"}, 422, "&lt;script&gt;"),
        ({"yaml": "a: &x [*x]"}, 422, "aliases"),
        ({"bundled": "quickstart", "name": "No Name"}, 422, "name: string should match pattern"),
        ({"bundled": "quickstart", "name": "x\n"}, 303, ""),
    ],
)
def test_what_is_wrong_is_said_in_place_and_nothing_is_lost(visitor, store, fields, status, says):
    answer = send(visitor, "/studies", **fields)
    assert answer.status_code == status
    assert says in answer.text
    if status == 422:
        assert 'role="alert"' in answer.text
        assert "<script>alert" not in answer.text
        assert store.queue() == ()


def test_a_name_that_is_taken_is_said_in_place(visitor, client, study):
    client("bob").post("/v1/studies", json=study)
    answer = send(visitor, "/studies", yaml=yaml.safe_dump(study))
    assert answer.status_code == 409
    assert "is taken; choose another name" in answer.text
    assert "bob" not in answer.text


def test_parts_come_only_when_something_has_changed(visitor, client, study, store, app):
    send(visitor, "/studies", yaml=yaml.safe_dump(study))

    def part(page: str, pattern: str) -> httpx.Response:
        found = re.search(pattern, visitor.get(page).text)
        assert found is not None
        return visitor.get(found[1].replace("&amp;", "&"), headers={"HX-Request": "true"})

    listed, shown = r'hx-get="(/parts/studies\?[^"]*)"', r'hx-get="(/parts/studies/tiny\?[^"]*)"'
    assert part("/", listed).status_code == 204
    assert part("/studies/tiny", shown).status_code == 204
    old = re.search(shown, visitor.get("/studies/tiny").text)[1].replace("&amp;", "&")
    older = re.search(listed, visitor.get("/").text)[1].replace("&amp;", "&")
    client("ann").post("/v1/studies/tiny/cancel")
    answer = visitor.get(old)
    assert answer.status_code == 200
    assert 'hx-swap-oob="innerHTML:#announcement">tiny is cancelled</div>' in answer.text
    assert "hx-trigger" not in answer.text
    assert ">tiny is cancelled</div>" in visitor.get(older).text


def test_a_study_is_cancelled_resumed_and_extended_by_forms(visitor, study, store):
    study = {**study, "budget": {"sample_passes": 536}}  # enough for the third retraining
    send(visitor, "/studies", yaml=yaml.safe_dump(study))
    assert send(visitor, "/studies/tiny/cancel").status_code == 303
    assert store.queued_study("tiny").state == "cancelled"
    assert send(visitor, "/studies/tiny/resume").status_code == 303
    assert store.queued_study("tiny").state == "queued"
    answer = send(visitor, "/studies/tiny/extend", assignments="retrain.seeds=[0, 1, 2]")
    assert answer.status_code == 409
    assert "wait until it has ended" in answer.text
    assert "retrain.seeds=[0, 1, 2]" in answer.text
    store.request_cancel("tiny")
    assert send(visitor, "/studies/tiny/extend", assignments="retrain.seeds=[0, 1, 2]\n\n").status_code == 303
    assert store.queued_study("tiny").document["retrain"]["seeds"] == [0, 1, 2]


def test_who_may_only_read_has_no_forms_and_is_refused(client, store, study, told):
    client("ann").post("/v1/studies", json=study)
    reader = client(None)
    reader.post("/login", data={"token": store.create_token("", owner="ann", scope="read")[1]})
    for path in ("/", "/studies/tiny"):
        text = reader.get(path).text
        assert "read-only" in text
        assert re.findall(r'action="([^"]*)"', text) == ["/logout"]
    assert send(reader, "/studies", yaml=yaml.safe_dump({**study, "name": "other"})).status_code == 403
    assert send(reader, "/studies/tiny/cancel").status_code == 403
    assert store.queued_study("tiny").state == "queued"


def test_studies_of_others_are_not_there(visitor, client, study, told):
    client("bob").post("/v1/studies", json=study)
    assert "tiny" not in visitor.get("/").text
    told(visitor.get("/studies/tiny"), 404, "not_found")
    told(send(visitor, "/studies/tiny/cancel"), 404, "not_found")


def test_the_page_links_to_mlflow_and_ray_where_they_are(client, limited, store, study):
    app = limited(mlflow_url="https://mlflow.example", ray_url="https://ray.example")
    ann = client("ann", to=app)
    ann.post("/v1/studies", json=study)
    row = store.acquire_lease("one", seconds=FOR_LONG)
    store.record_job("tiny", "one", job="job-0", attempt=0)
    store.create_study("tiny", config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
    store.record_projection("tiny", target="mlflow", external_id="abc123")
    store.record_projection("tiny", target=PAGES_TARGET, external_id='{"arms": "#/experiments/7/runs?a=1&b=2"}')
    visitor = client(None, to=app)
    visitor.post("/login", data={"token": store.create_token("", owner="ann", scope="read")[1]})
    text = visitor.get("/studies/tiny").text
    assert 'href="https://mlflow.example/#/runs/abc123"' in text
    assert '<a href="https://mlflow.example/#/experiments/7/runs?a=1&amp;b=2">arms in MLflow</a>' in text
    assert 'href="https://ray.example/#/jobs/job-0"' in text


def test_files_of_the_page_are_kept_by_browsers_until_they_change(client):
    answer = client(None).get("/static/htmx.min.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    again = client(None).get("/static/htmx.min.js", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "document", ['{"x": 1}', '{"budget": {"sample_passes": 7}, "arms": [{}], "question": [1]}', "[1]", "{]"]
)
def test_a_study_that_cannot_be_read_takes_no_page_list_or_stream_down(visitor, client, study, store, told, document):
    ann = client("ann")
    for name in ("good", "bad"):
        ann.post("/v1/studies", json={**study, "name": name})
        store.acquire_lease("worker", seconds=FOR_LONG)
    with store._database.writing() as connection:
        update = sa.text("UPDATE queue SET document = :x, source = :x WHERE study = 'bad'")
        connection.execute(update, {"x": document})
    for path in ("/", "/parts/studies", "/studies/good", "/studies/bad", "/v1/studies", "/v1/studies/good"):
        answer = visitor.get(path)
        assert answer.status_code == 200, path
        assert "good" in answer.text or "bad" in answer.text
    shown = ann.get("/v1/studies/bad").json()
    assert (shown["name"], shown["state"], shown["arms"], shown["share"]) == ("bad", "running", [], 0.0)
    store.finish_queued("bad", "worker", "failed", message="it cannot be read")
    assert "it cannot be read" in ann.get("/v1/studies/bad/events").text
    assert "it cannot be read" in visitor.get("/studies/bad").text
    told(ann.post("/v1/studies/bad/extend", json={"assignments": ["budget.sample_passes=10"]}), 422, "invalid_study")


def test_a_study_that_waits_says_where_in_line_why_and_until_when(visitor, client, study, store):
    ann = client("ann")
    made = ann.post("/v1/studies?priority=3", json=study).json()
    assert (made["priority"], made["position"], made["expected_at"]) == (3, None, None)
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    store.set_waiting({study["name"]: Waiting(2, "waits for a place", at)})
    time.sleep(1.1)  # older than what is remembered
    shown = ann.get(f"/v1/studies/{study['name']}").json()
    assert (shown["state"], shown["message"], shown["position"]) == ("queued", "waits for a place", 2)
    assert shown["expected_at"] == "2026-01-02T03:04:00Z"
    assert ann.get("/v1/studies").json()["studies"][0]["position"] == 2
    text = "waits for a place (2 in line, expected to start at 2026-01-02 03:04 UTC)"
    for path in ("/", f"/studies/{study['name']}", "/parts/studies"):
        assert text in visitor.get(path).text
    store.set_waiting({study["name"]: Waiting(1, "waits for room")})
    assert "waits for room (next in line)" in visitor.get("/").text


def test_priority_is_a_small_number_and_may_be_changed_by_resuming(client, study, store, told):
    ann = client("ann")
    told(ann.post("/v1/studies?priority=101", json=study), 422, "invalid_request")
    ann.post("/v1/studies", json=study)
    store.request_cancel(study["name"])
    assert ann.post(f"/v1/studies/{study['name']}/resume?priority=-4").json()["priority"] == -4
