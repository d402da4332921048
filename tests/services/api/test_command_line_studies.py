"""Studies that were run without the service: who sees them, what is shown, and that nobody else gets any of it."""

import json
from dataclasses import replace

import httpx
import pytest

from services.api.requests.submitted_study import checked
from services.store import Store
from tests.services.api.test_api_page import send


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def page_of(client, store):
    """Makes somebody who has logged in to the page."""

    def make(owner: str, scope: str = "write", **changes: object) -> httpx.Client:
        found = client(None, **changes)
        assert found.post("/login", data={"token": store.create_token("", owner=owner, scope=scope)[1]})
        return found

    return make


READ = ("", "/report", "/comparison", "/trials", "/architectures", "/models", "/events", "/teams")
CHANGES = (("POST", "/cancel"), ("POST", "/resume"), ("DELETE", ""), ("PUT", "/teams/vision"))


def test_an_administrator_sees_them_and_nobody_else_does(client, by_hand, told):
    admin, ann = client("root", "admin"), client("ann")
    (listed,) = admin.get("/v1/studies?origin=command-line").json()["studies"]
    assert (listed["name"], listed["origin"], listed["owner"], listed["state"]) == (
        "by-hand", "command-line", "", "complete",
    )  # fmt: skip
    assert admin.get("/v1/studies").json()["studies"] == []
    assert ann.get("/v1/studies?origin=command-line").json() == {"studies": [], "next": None}
    for path in READ:
        told(ann.get(f"/v1/studies/by-hand{path}"), 404, "not_found")
    assert admin.get("/v1/studies/by-hand").json()["arms"][0]["failed"] == 1
    assert admin.get("/v1/studies/by-hand/comparison").json() == {"study": "by-hand"}
    assert "event: end" in admin.get("/v1/studies/by-hand/events").text


def test_nobody_changes_them_through_the_service(client, by_hand, store, told):
    store.add_member("vision", "ann")
    admin, ann = client("root", "admin"), client("ann")
    for method, path in CHANGES:
        told(admin.request(method, f"/v1/studies/by-hand{path}"), 403, "not_submitted")
        told(ann.request(method, f"/v1/studies/by-hand{path}"), 404, "not_found")
    told(
        admin.post("/v1/studies/by-hand/extend", json={"assignments": ["retrain.seeds=[0,1,2]"]}), 403, "not_submitted"
    )
    assert store.study("by-hand").state == "complete"


def test_the_owner_whom_the_operator_names_sees_them(client, limited, by_hand, told):
    app = limited(command_line_owner="ann")
    assert len(client("ann", to=app).get("/v1/studies?origin=command-line").json()["studies"]) == 1
    assert client("ann", "read", to=app).get("/v1/studies/by-hand").status_code == 200
    bob = client("bob", to=app)
    assert bob.get("/v1/studies?origin=command-line").json()["studies"] == []
    told(bob.get("/v1/studies/by-hand"), 404, "not_found")


def test_who_does_not_see_them_gets_nothing_by_submitting_the_same(client, by_hand, store, told):
    found = told(client("bob").post("/v1/studies", json=by_hand), 409, "conflict")
    assert found["message"] == "the name 'by-hand' is taken; choose another name"
    assert store.queue() == ()


def test_who_sees_them_queues_none_a_second_time(client, by_hand, store, told):
    answer = client("root", "admin").post("/v1/studies", json=by_hand)
    assert (answer.status_code, answer.json()["state"], answer.json()["origin"]) == (200, "complete", "command-line")
    assert store.queue() == ()


def test_one_that_runs_is_not_queued_and_one_that_has_stopped_goes_on(client, study, store, settings, told):
    resolved, admin = checked(study, settings), client("root", "admin")
    store.create_study("tiny", config=resolved.to_json(), config_hash=resolved.hash, arms=list(resolved.arms))
    store.claim_study("tiny")
    assert (
        "is being run on the command line" in told(admin.post("/v1/studies", json=study), 409, "wrong_state")["message"]
    )
    store.release_study("tiny")  # the driver was stopped
    assert admin.get("/v1/studies/tiny").json()["state"] == "interrupted"
    assert admin.post("/v1/studies", json=study).status_code == 201
    assert store.queued_study("tiny").owner == "root"
    assert store.command_line_study("tiny") is None


def test_the_page_shows_them_without_forms_and_without_folders(page_of, by_hand, settings):
    admin, ann = page_of("root", "admin"), page_of("ann")
    assert "Run on the command line" in admin.get("/").text
    text = admin.get("/studies/by-hand").text
    assert "&lt;b&gt;no room&lt;/b&gt; in (home)/runs" in text
    assert str(settings.home) not in text
    assert 'action="/studies/by-hand' not in text
    assert "Delete…" not in text
    assert admin.get("/studies/by-hand/delete").headers["location"] == "/studies/by-hand"
    assert "by-hand" not in ann.get("/").text
    for path in ("/studies/by-hand", "/studies/by-hand/delete", "/parts/studies/by-hand"):
        assert ann.get(path).status_code == 404


def test_the_page_says_that_one_has_been_run_and_queues_it_when_told_so_alone(page_of, by_hand, store):
    admin = page_of("root", "admin")
    text = json.dumps(by_hand)
    answer = send(admin, "/studies", yaml=text)
    assert answer.status_code == 409
    assert '<a href="/studies/by-hand">by-hand</a> is complete, run on the command line' in answer.text
    assert send(admin, "/studies", yaml=text, again="1").status_code == 409  # under this name there is nothing to run
    assert store.queue() == ()
    assert send(admin, "/studies", yaml=text, name="once-more").status_code == 409
    assert store.queue() == ()
    answer = send(admin, "/studies", yaml=text, name="once-more", again="1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/once-more")


def test_lists_of_them_have_pages_and_no_deleted_ones(store):
    for number in range(3):
        store.create_study(f"study-{number}", config={}, config_hash="cafe", arms=["a"])
    store.enqueue("study-1", document={}, config_hash="cafe", owner="ann")
    store.delete_study("study-0", grace_seconds=60, by="operator")
    (row,) = store.command_line_studies()
    assert (row.study, row.submitted, row.state) == ("study-2", False, "queued")
    assert store.command_line_studies(before=row.id) == ()
    assert store.command_line_study("study-0") is None
    assert store.command_line_status("study-1") is None


def test_the_name_of_their_owner_is_given_to_nobody_who_signs_in(settings):
    named = replace(settings, command_line_owner="ann", owner_shares=(("bob", 2.0),)).named_owners
    assert named == {"ann", "bob"}
