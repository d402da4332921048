"""Deleted studies are hidden, can be restored, and are purged with all their rows; then their names are free."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from services.store import Actor, NotFound, StateError, StudyConflict, acting, tables

GRACE = 3600.0


def enqueue(store, study="example", owner="ann", **changes):
    return store.enqueue(study, **{"document": {"arms": {}}, "config_hash": "cafe", "owner": owner} | changes)


def end(store, study="example"):
    store.acquire_lease("w", seconds=60.0, study=study)
    store.record_job(study, "w", job=f"job-{study}", attempt=store.queued_study(study).attempt)
    store.finish_queued(study, "w", "complete")


def rows(store) -> dict[str, int]:
    with store._database.reading() as connection:
        counted = {
            name: connection.scalar(sa.select(sa.func.count()).select_from(t))
            for name, t in tables.METADATA.tables.items()
        }
    return {name: count for name, count in counted.items() if count and name not in ("identity", "audit")}


def test_a_deleted_study_is_hidden_and_comes_back(store, study):
    enqueue(store)
    end(store)
    with acting(Actor("ann", 1)):
        deleted = store.delete_study("example", grace_seconds=GRACE, by="ann")
    assert (deleted.owner, deleted.purge_at - deleted.deleted_at) == ("ann", timedelta(seconds=GRACE))
    assert store.delete_study("example", grace_seconds=1.0, by="bob") == deleted
    assert store.deleted_study("example") == deleted
    assert store.deleted_studies("ann") == store.deleted_studies() == (deleted,)
    assert store.deleted_studies("bob") == store.queue() == store.studies() == ()
    assert store.queued_study("example") is store.study_status("example") is None
    with pytest.raises(StateError, match="was deleted by ann, and its name is free when it is purged, after"):
        store.request_resume("example")
    for change in (store.claim_study, lambda name: store.create_study(name, config={}, config_hash="x", arms=["a"])):
        with pytest.raises(StateError, match="was deleted by ann"):
            change("example")
    with pytest.raises(StudyConflict, match="was deleted by ann"):
        enqueue(store)
    with pytest.raises(StudyConflict, match=r"'example' is taken; choose another name$"):
        enqueue(store, owner="bob")
    with acting(Actor("ann", 1)):
        store.restore_study("example")
    assert [row.study for row in store.queue()] == [row.name for row in store.studies()] == ["example"]
    assert store.deleted_studies() == ()
    with pytest.raises(NotFound):
        store.restore_study("example")
    assert [row.action for row in store.audit_log()] == ["restore", "delete"]


def test_only_what_has_ended_is_deleted(store, study):
    with pytest.raises(NotFound):
        store.delete_study("other", grace_seconds=GRACE, by="ann")
    enqueue(store)
    with pytest.raises(StateError, match="is 'queued': only a study that has ended can be deleted; cancel it"):
        store.delete_study("example", grace_seconds=GRACE, by="ann")
    store.request_cancel("example")
    store.claim_study("example", "elsewhere:1")
    with pytest.raises(StateError, match="is being run by elsewhere:1; stop it first"):
        store.delete_study("example", grace_seconds=GRACE, by="ann")
    store.release_study("example", "elsewhere:1")
    store.delete_study("example", grace_seconds=GRACE, by="ann")


def test_a_purged_study_leaves_nothing_but_the_numbers_of_its_jobs(store, study, running):
    store.add_member("vision", "bob")
    kept = store.create_study("kept", config={}, config_hash="b", arms=["a"]).name
    store.add_trial(kept, arm="a", phase="search", number=0, seed=1, planned=1, experiment={})
    before = rows(store)
    enqueue(store)
    store.share_study("example", "vision")
    end(store)
    store.record_projection("example", target="mlflow", external_id="x")
    store.record_projection("example", target="mlflow", external_id="y", trial=running)
    store.add_export(running, path="p", hashes={}, verified=True)
    store.delete_study("example", grace_seconds=GRACE, by="ann")
    assert store.due_for_purge() == ()
    assert not store.begin_purge("example")
    store.finish_purge("example")  # not begun: nothing happens
    assert store.has_study("example")
    assert store.begin_purge("example", early=True)
    assert store.due_for_purge() == ("example",)
    with pytest.raises(StateError, match="is being purged"):
        store.restore_study("example")
    for _ in range(2):
        store.finish_purge("example")
    assert not store.has_study("example")
    assert store.deleted_study("example") is None
    assert store.due_for_purge() == ()
    after = rows(store)
    assert after.pop("deletions") == 1
    assert set(after) == {"studies", "arms", "trials", "events", "team_members"}
    assert (after["studies"], after["trials"], before["trials"]) == (1, 1, 2)
    assert store.shares("example") == ()
    # Ray knows the job of the first one: that of the second must have another number.
    assert enqueue(store, owner="bob").attempt == 1
    end(store)
    store.delete_study("example", grace_seconds=0.0, by="bob")
    assert store.begin_purge("example")
    store.finish_purge("example")
    assert enqueue(store).attempt == 2


def test_studies_are_kept_for_so_many_days(store, study):
    enqueue(store)
    enqueue(store, "open")
    end(store)
    assert store.delete_expired(days=1, grace_seconds=GRACE, by="retention") == ()
    with store._database.writing() as connection:
        connection.execute(sa.text("UPDATE queue SET updated_at = '2020-01-01 00:00:00'"))
    assert store.delete_expired(days=1, grace_seconds=GRACE, by="retention") == ("example",)
    assert store.delete_expired(days=1, grace_seconds=GRACE, by="retention") == ()
    assert [row.study for row in store.queue()] == ["open"]


def test_members_of_a_team_see_what_is_shared_with_it(store):
    enqueue(store, "a")
    enqueue(store, "b", owner="bob")
    store.add_member("vision", "ann")
    store.add_member("vision", "bob")
    store.add_member("sound", "carl")
    assert store.teams("ann") == {"vision": ("ann", "bob")}
    assert store.teams() == {"sound": ("carl",), "vision": ("ann", "bob")}
    store.share_study("a", "vision")
    store.share_study("a", "vision")
    assert store.shares("a") == ("vision",)
    assert [store.is_shared_with("a", who) for who in ("bob", "carl")] == [True, False]
    assert [row.study for row in store.queue(visible_to="bob")] == ["b", "a"]
    assert [row.study for row in store.queue(visible_to="bob", owner="ann")] == ["a"]
    assert [row.study for row in store.queue(visible_to="carl")] == []
    store.unshare_study("a", "vision")
    assert not store.is_shared_with("a", "bob")
    store.share_study("a", "vision")
    for member in ("ann", "bob"):
        store.remove_member("vision", member)
    store.add_member("vision", "eve")  # another team, of the same name
    assert not store.is_shared_with("a", "eve")
    for wrong, error in (
        (lambda: store.share_study("none", "sound"), "no study 'none'"),
        (lambda: store.share_study("a", "none"), "no team 'none'"),
        (lambda: store.remove_member("sound", "ann"), "'ann' is not a member"),
    ):
        with pytest.raises(NotFound, match=error):
            wrong()
    with pytest.raises(ValueError, match="team must be 1 to 64"):
        store.add_member("no team", "ann")


def test_what_purged_studies_have_used_is_kept_by_owner_and_day(store):
    now = datetime.now(UTC)
    for number, gpus in enumerate((2.0, 0.5, 0, "many", None)):
        name = f"s{number}"
        store.create_study(name, config={}, config_hash="a", arms=["a"])
        trials = [
            store.add_trial(name, arm="a", phase="search", number=trial, seed=0, planned=9, experiment={}).id
            for trial in range(250)  # more than are deleted at once
        ]
        for trial in trials[:3]:
            store.start_attempt(trial)
            store.record_epochs(trial, [{"epoch": 0, "sample_passes": 9, "seconds": 10.0}])
            store.finish_trial(trial, "failed", reason="diverged")
        document = {} if gpus is None else {"workers": {"gpus": gpus}}
        enqueue(store, name, owner="bob" if gpus == 0.5 else "ann", document=document, config_hash="a")
        end(store, name)
        store.delete_study(name, grace_seconds=0.0, by="ann")
        assert store.begin_purge(name)
        for _ in range(2):
            store.finish_purge(name)
    assert store.purged_gpu_seconds(now) == {"ann": 60.0, "bob": 15.0}
    assert store.purged_gpu_seconds(now + timedelta(days=2)) == {}
