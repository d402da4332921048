"""People who sign in: who they are does not depend on names, and nobody becomes an owner that somebody is."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.store import Actor, Identity, NotFound, SignInRefused, Store, StudyConflict, acting, schema_version

ANN = Identity("https://sso.example", "s-1")


def test_a_person_is_the_same_owner_at_every_sign_in(store):
    assert store.sign_in(ANN, scope="write") is None
    token = store.sign_in_as_new(ANN, owner="ann", scope="read")
    assert (token.owner, token.scope, token.name) == ("ann", "read", "sign-in")
    assert store.sign_in(ANN, scope="admin").id == token.id
    assert store.valid_token(token.id).scope == "admin"
    assert store.sign_in_as_new(ANN, owner="somebody-else", scope="write").owner == "ann"
    person = store.person_of_token(token.id)
    assert (person.identity, person.owner, person.scope) == (ANN, "ann", "write")
    assert person.signed_in_at >= person.created_at
    assert store.person_of_token(0) is None
    assert [(row.action, row.actor) for row in store.audit_log()] == [("person-add", "ann")]


@pytest.mark.parametrize("name", ["ann", "ANN", "bob", "cid", "dee", "eve", "Operator"])
def test_a_name_that_is_known_is_taken(store, name):
    store.create_token("", owner="Ann", scope="read")
    store.enqueue("a", document={}, config_hash="a", owner="bob")
    store.enqueue("b", document={}, config_hash="b", owner="cid")
    store.request_cancel("b")
    store.delete_study("b", grace_seconds=0.0, by="cid")
    store.begin_purge("b")
    store.finish_purge("b")
    store.add_member("vision", "dee")
    store.sign_in_as_new(Identity("https://other.example", "s-1"), owner="eve", scope="write")
    with pytest.raises(SignInRefused, match="belongs to somebody here already") as caught:
        store.sign_in_as_new(ANN, owner=name, scope="write", reserved=["operator"])
    assert caught.value.reason == "taken"
    assert store.sign_in(ANN, scope="write") is None
    assert len(store.people()) == 1


def test_of_those_who_want_a_name_at_once_one_gets_it(store):
    def enter(number: int) -> str:
        try:
            return str(store.sign_in_as_new(Identity("i", f"s-{number % 4}"), owner="ann", scope="write").owner)
        except SignInRefused as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        entered = list(pool.map(enter, range(8)))
    assert sorted(entered) == ["ann"] * 2 + ["taken"] * 6  # each of them came twice
    assert len(store.people()) == len(store.tokens()) == 1


def test_operators_say_who_somebody_is(store):
    store.create_token("", owner="ann", scope="write")
    person = store.add_person(ANN, owner="ann")
    assert store.add_person(ANN, owner="ann") == person
    for identity, owner in ((ANN, "bob"), (Identity(ANN.issuer, "s-2"), "ann")):
        with pytest.raises(StudyConflict, match=r"'ann' signs in as 's-1' of .* remove that first"):
            store.add_person(identity, owner=owner)
    for identity, owner in ((ANN, "no name"), (Identity("i", ""), "bob"), (Identity("i", "\0"), "bob")):
        with pytest.raises(ValueError, match="must"):
            store.add_person(identity, owner=owner)
    assert store.sign_in(ANN, scope="write").owner == "ann"
    for change in (store.remove_person, store.disable_person, store.enable_person):
        with pytest.raises(NotFound, match="nobody signs in as 'bob'"):
            change("bob")


def test_who_is_disabled_has_no_session_and_no_token_until_enabled(store):
    token = store.sign_in_as_new(ANN, owner="ann", scope="write")
    other, secret = store.create_token("", owner="ann", scope="write")
    for digest, of in (("a", token.id), ("b", other.id)):
        store.open_session(digest, token=of, seconds=60.0)
    store.disable_person("ann")
    assert [store.session_token(digest) for digest in "ab"] == [None, None]
    assert store.token(secret) is store.valid_token(token.id) is None
    for enter in (store.sign_in, lambda who, scope: store.sign_in_as_new(who, owner="ann", scope=scope)):
        with pytest.raises(SignInRefused, match="'ann' is disabled") as caught:
            enter(ANN, scope="write")
        assert caught.value.reason == "disabled"
    store.enable_person("ann")
    assert store.sign_in(ANN, scope="write").id == token.id
    assert store.token(secret) is None
    store.revoke_token(token.id)  # the same as disabling, but for the tokens with a secret
    with pytest.raises(SignInRefused, match="disabled"):
        store.sign_in(ANN, scope="write")


def test_who_is_removed_is_a_stranger_whose_name_stays_taken(store):
    token = store.sign_in_as_new(ANN, owner="ann", scope="write")
    store.open_session("a", token=token.id, seconds=60.0)
    with acting(Actor("operator eve")):
        store.remove_person("ann")
    assert store.session_token("a") is store.sign_in(ANN, scope="write") is None
    assert store.people() == ()
    with pytest.raises(SignInRefused, match="belongs to somebody"):
        store.sign_in_as_new(ANN, owner="ann", scope="write")
    row = store.audit_log(actor="operator eve")[0]
    assert (row.action, row.subject, row.detail) == (
        *("person-remove", "ann"),
        {"provider": ANN.issuer, "person": "s-1"},
    )


def test_a_sign_in_that_has_begun_is_used_once_and_not_for_ever(store):
    store.begin_sign_in("a", seconds=60.0)
    store.begin_sign_in("late", seconds=-1.0)
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(store.use_sign_in, ["a"] * 4)) == [False, False, False, True]
    assert not store.use_sign_in("late")
    assert not store.use_sign_in("never")


def test_a_refusal_is_in_the_audit_log(store):
    store.note_refusal(ANN, reason="disabled")
    row = store.audit_log()[0]
    assert (row.actor, row.token, row.action, row.subject) == ("sign-in", None, "login-refused", "s-1")
    assert row.detail == {"provider": ANN.issuer, "reason": "disabled"}


def test_an_older_release_finds_no_token_and_no_session_of_people(store_url):
    with Store.open(store_url) as store:
        token = store.sign_in_as_new(ANN, owner="ann", scope="write")
        other, secret = store.create_token("", owner="bob", scope="write")
        for digest, of in (("a", token.id), ("b", other.id)):
            store.open_session(digest, token=of, seconds=60.0)
    schema_version.downgrade(store_url, "0009")
    with Store.open(store_url) as store:
        assert [row.owner for row in store.tokens()] == ["bob"]
        assert store.token(secret) == other
        assert [store.session_token(digest) for digest in "ab"] == [None, other.id]
        assert store.people() == ()
