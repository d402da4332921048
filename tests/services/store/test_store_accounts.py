"""Sessions end on the server, and the audit log has who did what, in the transaction of what was done."""

import pytest

from services.store import Actor, NotFound, acting
from services.store.accounts.audit import note

ANN = Actor("ann", 3)


def test_a_session_ends_by_itself_by_logging_out_and_with_its_token(store):
    row, _ = store.create_token("", owner="ann", scope="read")
    for digest, seconds in (("a", 60.0), ("b", 60.0), ("c", 60.0), ("old", -1.0)):
        store.open_session(digest, token=row.id if digest != "c" else 0, seconds=seconds)
    assert [store.session_token(digest) for digest in ("a", "b", "c", "old", "none")] == [row.id, row.id, 0, None, None]
    store.end_session("a")
    store.end_session("a")
    assert [store.session_token(digest) for digest in ("a", "b")] == [None, row.id]
    store.revoke_token(row.id)
    assert [store.session_token(digest) for digest in ("b", "c")] == [None, 0]


def test_the_audit_log_has_who_did_what(store):
    store.open_session("unseen", token=1, seconds=60.0)  # by nobody: not recorded
    with acting(ANN):
        row, _ = store.create_token("", owner="bob", scope="read")
        store.revoke_token(row.id)
        store.revoke_token(row.id)
        store.open_session("a", token=3, seconds=60.0)
        store.end_session("a")
        store.end_session("a")
        with pytest.raises(NotFound):
            store.revoke_token(999)
    log = store.audit_log()
    assert [each.action for each in log] == ["logout", "login", "token-revoke", "token-create"]
    made = log[-1]
    assert (made.actor, made.token, made.subject, made.detail) == (
        *("ann", 3, str(row.id)),
        {"owner": "bob", "scope": "read"},
    )
    assert [each.id for each in store.audit_log(before=log[1].id, limit=1)] == [log[2].id]
    assert [each.action for each in store.audit_log(actor="ann", action="login")] == ["login"]
    assert store.audit_log(actor="bob") == store.audit_log(subject="999") == ()


def test_what_fails_leaves_no_row(store):
    def fail() -> None:
        with store._database.writing() as connection:
            note(connection, store._database.now(connection), "submit", "tiny")
            raise ValueError("stopped")

    with acting(ANN), pytest.raises(ValueError, match="stopped"):
        fail()
    assert store.audit_log() == ()


def test_old_rows_of_the_audit_log_are_deleted(store):
    with acting(ANN):
        store.create_token("", owner="bob", scope="read")
    assert store.trim_audit_log(days=1) == 0
    assert len(store.audit_log()) == 1
    assert store.trim_audit_log(days=0) == 1
    assert store.audit_log() == ()
