"""Deleting, restoring and sharing studies, administrators and the audit log; and what no answer names."""

import re
import shutil
import subprocess
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from services.store import Store


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """The store itself is tested on both of its databases elsewhere."""
    return sqlite_store


@pytest.fixture
def ended(ann, study, store) -> str:
    """The name of a study of ann's that was cancelled."""
    ann.post("/v1/studies", json=study)
    ann.post("/v1/studies/tiny/cancel")
    return "tiny"


def names(client: httpx.Client) -> list[str]:
    return [study["name"] for study in client.get("/v1/studies").json()["studies"]]


def test_a_deleted_study_is_hidden_until_it_is_restored(ann, client, ended, told):
    bob = client("bob")
    told(bob.delete("/v1/studies/tiny"), 404, "not_found")
    told(client("ann", "read").delete("/v1/studies/tiny"), 403, "read_only")
    answer = ann.delete("/v1/studies/tiny")
    assert answer.status_code == 200
    deleted = answer.json()
    assert (deleted["name"], deleted["owner"], deleted["deleted_by"]) == ("tiny", "ann", "ann")
    kept = datetime.fromisoformat(deleted["purge_at"]) - datetime.fromisoformat(deleted["deleted_at"])
    assert kept == timedelta(days=7)
    assert ann.delete("/v1/studies/tiny").json() == deleted
    assert names(ann) == []
    for path in ("", "/trials", "/events", "/report"):
        told(ann.get(f"/v1/studies/tiny{path}"), 404, "not_found")
    assert ann.get("/v1/deleted").json() == [deleted]
    assert bob.get("/v1/deleted").json() == []
    told(bob.post("/v1/studies/tiny/restore"), 404, "not_found")
    assert ann.post("/v1/studies/tiny/restore").json()["state"] == "cancelled"
    assert names(ann) == ["tiny"]
    told(ann.post("/v1/studies/tiny/restore"), 404, "not_found")


def test_a_study_that_waits_must_be_cancelled_first(ann, study, told):
    ann.post("/v1/studies", json=study)
    problem = told(ann.delete("/v1/studies/tiny"), 409, "wrong_state")
    assert problem["message"].endswith("only a study that has ended can be deleted; cancel it")


def test_the_name_of_a_deleted_study_is_taken_until_it_is_purged(ann, study, ended, store, told):
    ann.delete("/v1/studies/tiny")
    assert "was deleted by ann" in told(ann.post("/v1/studies", json=study), 409, "conflict")["message"]
    assert store.begin_purge("tiny", early=True)
    store.finish_purge("tiny")
    assert ann.post("/v1/studies", json=study).status_code == 201


def test_an_administrator_sees_and_changes_the_studies_of_all(ann, client, study, settings, told):
    ann.post("/v1/studies", json=study)
    told(client("bob").post("/v1/studies/tiny/cancel"), 404, "not_found")
    root = client(None)
    root.headers["Authorization"] = f"Bearer {settings.api_token}"
    for admin in (client("eve", "admin"), root):
        assert names(admin) == ["tiny"]
        assert admin.get("/v1/studies?owner=bob").json()["studies"] == []
        assert admin.get("/v1/studies/tiny").json()["owner"] == "ann"
        assert admin.post("/v1/studies/tiny/cancel").json()["state"] == "cancelled"
        assert admin.delete("/v1/studies/tiny").json()["owner"] == "ann"
        assert [row["name"] for row in admin.get("/v1/deleted").json()] == ["tiny"]
        assert admin.post("/v1/studies/tiny/restore").status_code == 200


def test_a_team_sees_what_is_shared_with_it_and_changes_nothing(ann, client, ended, store, told):
    bob, carl = client("bob"), client("carl")
    for member in ("ann", "bob"):
        store.add_member("vision", member)
    told(ann.put("/v1/studies/tiny/teams/sound"), 404, "not_found")
    assert ann.put("/v1/studies/tiny/teams/vision").json() == {"study": "tiny", "teams": ["vision"]}
    assert (names(bob), names(carl)) == (["tiny"], [])
    assert bob.get("/v1/studies/tiny").json()["owner"] == "ann"
    assert bob.get("/v1/studies/tiny/trials").status_code == 200
    with bob.stream("GET", "/v1/studies/tiny/events") as stream:
        assert "event: end" in "".join(stream.iter_text())
    for change in (
        lambda: bob.post("/v1/studies/tiny/resume"),
        lambda: bob.post("/v1/studies/tiny/cancel"),
        lambda: bob.delete("/v1/studies/tiny"),
        lambda: bob.put("/v1/studies/tiny/teams/vision"),
    ):
        assert told(change(), 403, "not_owner")["remedy"] == "ask ann, or an administrator"
    for path in ("", "/trials", "/events", "/teams"):
        told(carl.get(f"/v1/studies/tiny{path}"), 404, "not_found")
    assert ann.delete("/v1/studies/tiny/teams/vision").json()["teams"] == []
    told(bob.get("/v1/studies/tiny"), 404, "not_found")


def test_the_audit_log_is_for_administrators(ann, client, ended, store, told):
    ann.delete("/v1/studies/tiny")
    ann.post("/v1/studies/tiny/restore")
    ann.post("/v1/studies/tiny/resume")
    told(ann.get("/v1/audit"), 403, "not_administrator")
    admin = client("eve", "admin")
    page = admin.get("/v1/audit?limit=2&actor=ann").json()
    assert [row["action"] for row in page["rows"]] == ["resume", "restore"]
    rest = admin.get(f"/v1/audit?actor=ann&before={page['next']}").json()
    assert [row["action"] for row in rest["rows"]] == ["delete", "cancel", "submit"]
    assert rest["next"] is None
    assert {row["subject"] for row in rest["rows"]} == {"tiny"}
    assert rest["rows"][0]["token"] == store.tokens("ann")[0].id


def test_a_study_says_when_it_will_be_deleted(client, limited, ended):
    app = limited(retention_days=30)
    study = client("ann", to=app).get("/v1/studies/tiny").json()
    until = datetime.fromisoformat(study["delete_at"]) - datetime.fromisoformat(study["updated_at"])
    assert until == timedelta(days=30)
    assert client("ann").get("/v1/studies/tiny").json()["delete_at"] is None


def test_the_page_deletes_restores_and_shares(client, store, ended, limited):
    page = client(None, to=limited(retention_days=30))
    for member in ("ann", "bob"):
        store.add_member("vision", member)
    page.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    shown = page.get("/studies/tiny").text
    assert "finished studies are kept for a limited time" in shown
    proof = re.findall(r'name="proof" value="([0-9a-f]{64})"', shown)[0]
    assert "Share with vision" in shown
    page.post("/studies/tiny/share", data={"proof": proof, "team": "vision", "on": "1"})
    assert "Shared with vision." in page.get("/studies/tiny").text
    other = client(None, to=limited())
    other.post("/login", data={"token": store.create_token("", owner="bob", scope="write")[1]})
    assert 'class="muted">of ann' in other.get("/").text
    seen = other.get("/studies/tiny").text
    assert "/studies/tiny/delete" not in seen
    assert "/studies/tiny/resume" not in seen
    answer = page.post("/studies/tiny/delete", data={"proof": proof})
    assert (answer.status_code, answer.headers["location"]) == (303, "/deleted")
    assert "/deleted/tiny/restore" in page.get("/deleted").text
    assert page.post("/deleted/tiny/restore", data={"proof": proof}).headers["location"] == "/studies/tiny"
    assert "There are no deleted studies." in page.get("/deleted").text


def test_no_message_names_a_folder_of_the_server(client, limited, settings, study, store, tmp_path):
    data = tmp_path / "data sets"
    texts = {
        f"the disk of {settings.home}/runs/tiny is full": "the disk of (home)/runs/tiny is full",
        f"{data}/cifar is missing; see {tempfile.gettempdir()}/x": "(data)/cifar is missing; see (temporary folder)/x",
        f"kept: {settings.home}more and /v1/studies": f"kept: {settings.home}more and /v1/studies",
    }
    ann = client("ann", to=limited(data=data))
    for number, (text, shown) in enumerate(texts.items()):
        name = f"t{number}"
        ann.post("/v1/studies", json={**study, "name": name})
        store.acquire_lease("w", seconds=60.0, study=name)
        store.finish_queued(name, "w", "failed", message=text)
        if str(settings.home).startswith(tempfile.gettempdir()) and shown.startswith("kept"):
            shown = shown.replace(tempfile.gettempdir(), "(temporary folder)")
        assert ann.get(f"/v1/studies/{name}").json()["message"] == shown
        listed = {row["name"]: row["message"] for row in ann.get("/v1/studies").json()["studies"]}
        assert listed[name] == shown
        assert f'"message":"{shown}"' in ann.get(f"/v1/studies/{name}/events").text


def test_every_request_of_the_guide_is_answered(store, served, app, study):
    curl = shutil.which("curl") or pytest.skip("needs curl")
    text = (Path(__file__).parents[3] / "docs" / "guides" / "administering.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "curl" in block]
    store.enqueue("hello", document=study, config_hash="a", owner="guide")
    store.request_cancel("hello")
    store.add_member("vision", "guide")
    token = store.create_token("", owner="guide", scope="write")[1]
    environment = {"PATH": f"{Path(curl).parent}:/usr/bin:/bin", "SERVICE": served(app), "TOKEN": token}
    said = [
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], env=environment, capture_output=True, timeout=60, check=True
        ).stdout
        for block in blocks
    ]
    assert len(said) == 2
    assert b'"deleted_by":"guide"' in said[0]
    assert said[1].endswith(b'{"study":"hello","teams":[]}')
