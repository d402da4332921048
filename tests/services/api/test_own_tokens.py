"""People who sign in make, list and revoke their own tokens, on the page and by the API, and nobody else's."""

import html
import re
from datetime import timedelta

import httpx
import pytest

from services.api.administration.token_routes import MOST_TOKENS
from services.store import Identity, Store, TokenLimit
from tests.services.api.signing_in import sign_in

GIVEN = {"name": "laptop", "scope": "write", "expires_days": "30"}


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """One kind of database is enough here; the rows are those of every token."""
    return sqlite_store


@pytest.fixture
def browser(signing_in, browser_of) -> httpx.Client:
    """The browser of a person who has signed in."""
    found = browser_of(signing_in())
    assert sign_in(found).status_code == 200
    return found


def proof(browser: httpx.Client) -> str:
    found = re.search(r'name="proof" value="(\w+)"', browser.get("/tokens").text)
    assert found is not None
    return found[1]


def made(browser: httpx.Client, **changes: str) -> httpx.Response:
    return browser.post("/tokens", data={**GIVEN, "proof": proof(browser), **changes})


def secret_in(answer: httpx.Response) -> str:
    found = re.search(r'id="secret" value="([^"]+)"', answer.text)
    assert found is not None, answer.text
    return html.unescape(found[1])


def bearer(browser: httpx.Client, secret: str) -> httpx.Client:
    return httpx.Client(
        base_url=browser.base_url,
        headers={"Authorization": f"Bearer {secret}"},
        timeout=20.0,
        verify=False,
    )


def test_a_person_makes_a_token_that_works_is_shown_once_and_ends_when_revoked(browser, store) -> None:
    answer = made(browser)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    secret = secret_in(answer)
    row = store.token(secret)
    assert row is not None
    assert (row.name, row.scope, row.owner) == ("laptop", "write", store.people()[0].owner)
    assert row.expires_at is not None
    assert abs(row.expires_at - row.created_at - timedelta(days=30)) < timedelta(minutes=1)
    assert secret not in browser.get("/tokens").text
    assert store.audit_log(action="token-create")[0].actor == row.owner
    with bearer(browser, secret) as program:
        assert program.get("/v1/studies").status_code == 200
        listed = program.get("/v1/tokens").json()["tokens"]
        assert [(each["id"], each["name"]) for each in listed] == [(row.id, "laptop")]
        assert secret not in str(listed)
        ended = browser.post(f"/tokens/{row.id}/revoke", data={"proof": proof(browser)})
        assert (ended.status_code, ended.headers["location"]) == (303, "/tokens")
        assert program.post("/v1/tokens", json={"name": "x"}).status_code == 401
    assert "revoked" in browser.get("/tokens").text


def test_a_form_without_the_proof_of_the_session_makes_and_revokes_nothing(browser, store) -> None:
    row = store.token(secret_in(made(browser)))
    assert row is not None
    for path, fields in (("/tokens", GIVEN), (f"/tokens/{row.id}/revoke", {})):
        assert browser.post(path, data={**fields, "proof": "0" * 64}).status_code == 403
        own = {**fields, "proof": proof(browser)}
        assert browser.post(path, data=own, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert len(store.tokens()) == 2
    assert store.valid_token(row.id) is not None


def test_a_scope_wider_than_the_persons_is_refused(signing_in, browser_of, store) -> None:
    browser = browser_of(signing_in(scope="read"))
    sign_in(browser)
    page = browser.get("/tokens").text
    assert 'value="read"' in page
    assert 'value="write"' not in page
    answer = made(browser)
    assert answer.status_code == 403
    assert "a token of yours may be of scope read, not wider" in answer.text
    assert len(store.tokens()) == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"expires_days": "0"}, "expires_days"), ({"expires_days": "366"}, "expires_days"), ({"name": " "}, "name"),
     ({"scope": "root"}, "scope")],
)  # fmt: skip
def test_a_wrong_value_is_named_and_what_was_entered_stays(browser, store, changes, key) -> None:
    answer = made(browser, **changes)
    assert answer.status_code == 422
    assert f"<strong>{key}: " in answer.text
    assert len(store.tokens()) == 1


def test_the_number_of_valid_tokens_is_limited_and_revoking_makes_room(browser, store) -> None:
    owner = store.people()[0].owner
    for number in range(MOST_TOKENS):
        store.create_token(str(number), owner=owner, scope="read")
    answer = made(browser)
    assert answer.status_code == 409
    assert f"may have {MOST_TOKENS} valid tokens" in answer.text
    store.revoke_token(store.tokens(owner)[-1].id)
    assert made(browser).status_code == 200
    with pytest.raises(TokenLimit):
        store.create_token("one more", owner=owner, scope="read", most=MOST_TOKENS)


def test_by_the_api_no_token_is_wider_or_lives_longer_than_the_one_that_makes_it(browser, store) -> None:
    with bearer(browser, secret_in(made(browser, scope="read", expires_days="2"))) as program:
        answer = program.post("/v1/tokens", json={"name": "child", "expires_days": 300})
        assert answer.status_code == 201
        parent, child = store.tokens(store.people()[0].owner)[-2:]
        assert child.expires_at == parent.expires_at
        assert store.token(answer.json()["secret"]) == child
        wider = program.post("/v1/tokens", json={"name": "child", "scope": "write"})
        assert (wider.status_code, wider.json()["error"]["code"]) == (403, "scope_too_wide")
        assert program.delete(f"/v1/tokens/{child.id}").json()["error"]["code"] == "read_only"


def test_nobody_revokes_what_is_another_owners_or_stands_for_signing_in(browser, store, told) -> None:
    other = store.create_token("", owner="bob", scope="write")[0].id
    with bearer(browser, secret_in(made(browser))) as program:
        for token in (other, store.people()[0].token, 10**6):
            told(program.delete(f"/v1/tokens/{token}"), 404, "not_found")
            assert browser.post(f"/tokens/{token}/revoke", data={"proof": proof(browser)}).status_code == 404
    assert store.valid_token(other) is not None
    assert store.valid_token(store.people()[0].token) is not None


def test_owners_without_a_person_make_none_and_one_who_never_signed_in_no_more_than_may_read(ann, store, told) -> None:
    found = told(ann.post("/v1/tokens", json={"name": "x"}), 403, "no_person")
    assert found["remedy"] == "ask an operator: `nas-blockout token create --owner ann`"
    store.add_person(Identity("https://elsewhere.example", "7"), owner="ann")
    told(ann.post("/v1/tokens", json={"name": "x", "scope": "write"}), 403, "scope_too_wide")


def test_disabling_a_person_ends_the_tokens_that_were_made(browser, store) -> None:
    secret = secret_in(made(browser))
    store.disable_person(store.people()[0].owner)
    assert store.token(secret) is None
    with bearer(browser, secret) as program:
        assert program.post("/v1/tokens", json={"name": "x"}).status_code == 401
