"""Operators delete, restore and purge studies, manage teams, and read who did what."""

import json
from datetime import timedelta

from services.store import Store


def enqueue(home) -> None:
    with Store.open(f"sqlite:///{home}/runs/nas_blockout.db") as store:
        store.enqueue("mine", document={}, config_hash="a", owner="ann")
        store.request_cancel("mine")
    (home / "runs" / "mine").mkdir()


def test_a_study_is_deleted_restored_and_purged(call, home):
    enqueue(home)
    assert "`nas-blockout restore mine` restores it until 20" in call("delete", "mine").out
    (listed,) = json.loads(call("purge", "--list", "--json").out)
    assert (listed["study"], listed["owner"]) == ("mine", "ann")
    assert listed["deleted_by"].startswith("operator ")
    assert "is restored" in call("restore", "mine").out
    assert call("restore", "mine").code == 3
    assert (home / "runs" / "mine").is_dir()
    assert "is purged; its name is free" in call("delete", "mine", "--now").out
    assert not (home / "runs" / "mine").exists()
    assert "There are no deleted studies." in call("purge").out
    assert call("delete", "mine").code == 3
    rows = json.loads(call("audit", "--json").out)
    assert [row["action"] for row in rows] == ["purge", "delete", "restore", "delete"]
    assert "restore" in call("audit", "--action", "restore").out


def test_teams_are_made_of_members(call):
    assert "There are no teams yet" in call("team", "list").out
    assert call("team", "add", "vision", "ann", "bob").code == 0
    assert call("team", "add", "no team", "ann").code == 2
    assert json.loads(call("team", "list", "--json").out) == {"vision": ["ann", "bob"]}
    assert call("team", "remove", "vision", "bob").code == 0
    assert "ann" in call("team", "list").out
    assert call("team", "remove", "vision", "bob").code == 3


def test_an_administrator_gets_a_token(call):
    made = json.loads(call("token", "create", "--owner", "eve", "--scope", "admin", "--json").out)
    assert made["scope"] == "admin"
    assert call("token", "revoke", str(made["id"])).code == 0
    assert [row["action"] for row in json.loads(call("audit", "--json").out)] == ["token-revoke", "token-create"]


def test_the_list_says_when_studies_are_deleted_and_purged(call, home, monkeypatch):
    with Store.open(f"sqlite:///{home}/runs/nas_blockout.db") as store:
        for name in ("gone", "ended", "by-hand", "waits"):
            store.create_study(name, config={}, config_hash="a", arms=["dense"])
        for name in ("gone", "ended", "waits"):
            store.enqueue(name, document={}, config_hash="a", owner="ann")
        store.request_cancel("gone")
        store.request_cancel("ended")
        ended = store.queued_study("ended").updated_at
        deleted = store.delete_study("gone", grace_seconds=3600.0, by="ann")
    listed = json.loads(call("list", "--json").out)
    assert {row["name"]: row["delete_at"] for row in listed["studies"]} == dict.fromkeys(("ended", "by-hand", "waits"))
    assert [(row["study"], row["purge_at"]) for row in listed["deleted"]] == [("gone", deleted.purge_at.isoformat())]
    out = call("list").out
    assert f"{deleted.purge_at:%Y-%m-%d %H:%M}" in out
    assert "deleted on" not in out
    monkeypatch.setenv("NAS_BLOCKOUT_RETENTION_DAYS", "90")
    on = {row["name"]: row["delete_at"] for row in json.loads(call("list", "--json").out)["studies"]}
    assert on == {"ended": (ended + timedelta(days=90)).isoformat(), "by-hand": None, "waits": None}
    assert f"{ended + timedelta(days=90):%Y-%m-%d %H:%M}" in call("list").out


def test_people_are_added_disabled_enabled_and_removed(call, monkeypatch):
    assert "Nobody has signed in yet" in call("person", "list").out
    assert call("person", "add", "ann", "--subject", "s-1").code == 2  # of which provider
    monkeypatch.setenv("NAS_BLOCKOUT_OIDC_ISSUER", "https://sso.example")
    monkeypatch.setenv("NAS_BLOCKOUT_OIDC_CLIENT_ID", "nas-blockout")
    assert "s-1 of https://sso.example signs in as ann" in call("person", "add", "ann", "--subject", "s-1").out
    assert call("person", "add", "no name", "--subject", "s-2").code == 2
    assert call("person", "add", "bob", "--subject", "s-1").code != 0
    assert call("person", "add", "bob", "--subject", "s-1", "--issuer", "https://other.example").code == 0
    ann, bob = json.loads(call("person", "list", "--json").out)
    assert (ann["owner"], ann["subject"], ann["signed_in_at"], ann["disabled"]) == ("ann", "s-1", None, False)
    assert bob["issuer"] == "https://other.example"
    assert call("person", "disable", "ann").code == 0
    assert "disabled" in call("person", "list").out
    assert call("person", "enable", "ann").code == 0
    assert call("person", "remove", "bob").code == 0
    assert call("person", "remove", "bob").code == 3
    rows = json.loads(call("audit", "--json").out)
    assert [row["action"] for row in reversed(rows)] == [
        *("person-add", "person-add", "person-disable", "person-enable", "person-remove"),
    ]
