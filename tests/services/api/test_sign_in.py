"""Signing in with an identity provider: who is let in, as whom, and what ends it."""

import logging
import re
from dataclasses import replace

import httpx
import pytest

from services.store import Identity, Store
from tests.services.api.signing_in import sign_in, there_and_back
from tests.services.identity_provider import CLIENT, SECRET
from tests.services.serving import closed_port, serving

GROUPS = {"groups": ["/staff", "/vision"]}
MAIL = {"email": "Ann@Example.org", "email_verified": True}


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """What the store keeps of people is tested on both of its databases elsewhere."""
    return sqlite_store


def owner_of(browser: httpx.Client) -> str:
    found = re.search(r'<span class="muted">([^<]+)</span>', browser.get("/").text)
    assert found is not None
    return found[1]


def actions(store: Store) -> list[str]:
    return [row.action for row in reversed(store.audit_log())]


def test_the_first_sign_in_makes_an_owner_and_later_ones_are_the_same(signing_in, browser_of, provider, store):
    browser = browser_of(signing_in())
    assert browser.get("/").headers["location"] == "/login"
    assert 'href="/login/oidc"' in browser.get("/login").text
    answer = sign_in(browser)
    assert answer.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/">' in answer.text
    assert owner_of(browser) == "s-1"
    assert sign_in(browser).status_code == 200
    person = store.people()[0]
    assert (person.identity, person.owner, person.scope) == (Identity(provider.issuer, "s-1"), "s-1", "write")
    assert len(store.people()) == len(store.tokens()) == 1
    assert actions(store) == ["person-add", "login", "login"]
    assert store.audit_log(action="login")[0].detail == {"provider": provider.issuer}
    assert "refresh" not in browser.get("/login").text


def test_the_button_and_the_routes_are_there_only_with_a_provider(client, told):
    browser = client(None)
    assert "oidc" not in browser.get("/login").text
    for path in ("/login/oidc", "/login/oidc/callback?state=x&code=y"):
        told(browser.get(path), 404, "not_found")


@pytest.mark.parametrize("rsa", [True, False])
def test_keys_of_both_kinds_sign_and_a_new_one_is_fetched_once(signing_in, browser_of, provider, rsa):
    provider.rotate("first", rsa=rsa)
    browser = browser_of(signing_in())
    for _ in range(3):
        assert sign_in(browser).status_code == 200
    assert provider.asked["/keys"] == provider.asked["/.well-known/openid-configuration"] == 1
    provider.rotate("second", rsa=not rsa)
    assert sign_in(browser).status_code == 200
    assert provider.asked["/keys"] == 2
    for kid in ("second", None):  # another key under the same name; one without a name
        provider.rotate(kid)
        assert sign_in(browser).status_code == 200
    assert provider.asked["/keys"] == 4


def test_the_session_is_one_of_the_store_and_ends_there(signing_in, browser_of, client, provider, store, told):
    app = signing_in()
    browser, copy = browser_of(app), client(None, to=app)
    cookie = sign_in(browser).headers["set-cookie"]
    assert "nas_blockout=" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    copy.cookies.update(browser.cookies)
    assert copy.get("/v1/studies").status_code == 200
    told(copy.post("/v1/studies", json={}), 401, "unauthorized")
    proof = re.search(r'name="proof" value="([0-9a-f]{64})"', browser.get("/").text)[1]
    answer = browser.post("/logout", data={"proof": proof})
    onward = re.search(r'content="0; url=([^"]+)"', answer.text)[1].replace("&amp;", "&")
    back = str(browser.base_url.join("/login"))
    assert httpx.URL(onward).copy_with(query=None) == f"{provider.issuer}/logout"
    assert dict(httpx.URL(onward).params) == {"client_id": CLIENT, "post_logout_redirect_uri": back}
    for each in (browser, copy):
        assert each.get("/").status_code == 303
    assert actions(store)[-1] == "logout"
    sign_in(browser)
    assert browser.get("/").status_code == 200
    store.revoke_token(store.people()[0].token)
    assert browser.get("/").status_code == 303


def test_logging_out_does_not_need_the_provider(signing_in, browser_of, provider, store):
    for changes, answers in (
        ({"end_session_endpoint": None}, {}),
        ({"end_session_endpoint": "javascript:alert(1)"}, {}),
        ({}, {"/.well-known/openid-configuration": (503, b"away")}),
    ):
        provider.metadata_changes, provider.answers = changes, {}
        browser = browser_of(signing_in())
        sign_in(browser)
        provider.answers = answers
        again = browser_of(signing_in())  # another process, which has not asked the provider yet
        again.cookies.update(browser.cookies)
        proof = re.search(r'name="proof" value="([0-9a-f]{64})"', again.get("/").text)[1]
        answer = again.post("/logout", data={"proof": proof})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert again.get("/").status_code == 303


def test_a_token_logs_in_and_out_as_before(signing_in, browser_of, store, provider):
    browser = browser_of(signing_in())
    token = store.create_token("", owner="bob", scope="read")[1]
    assert browser.post("/login", data={"token": token}).headers["location"] == "/"
    assert owner_of(browser) == "bob (read-only)"
    proof = re.search(r'name="proof" value="([0-9a-f]{64})"', browser.get("/").text)[1]
    assert browser.post("/logout", data={"proof": proof}).headers["location"] == "/login"
    assert provider.asked.total() == 0


def test_a_provider_that_is_away_is_said_and_tokens_still_log_in(signing_in, browser_of, store, told):
    app = signing_in(issuer=f"http://127.0.0.1:{closed_port()}")
    browser = browser_of(app)
    answer = browser.get("/login/oidc")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert "single sign-on does not answer" in answer.text
    assert "log in with a token" in answer.text
    del browser.headers["Accept"]
    told(browser.get("/login/oidc"), 503, "provider_unreachable")
    assert browser.get("/login").status_code == 200
    token = store.create_token("", owner="bob", scope="read")[1]
    assert browser.post("/login", data={"token": token}).status_code == 303


def test_a_slow_provider_is_waited_for_so_long_and_holds_nobody_up(signing_in, browser_of, client, provider, told):
    patient, hasty = browser_of(signing_in()), client(None, to=signing_in(seconds=0.3))
    url = httpx.URL(there_and_back(patient))
    hasty.cookies.update(patient.cookies)
    provider.sleep = 2.0
    told(hasty.get(f"{url.path}?{url.query.decode()}"), 503, "provider_unreachable")
    assert hasty.get("/healthz").status_code == 200
    provider.sleep = 0.0
    assert sign_in(patient).status_code == 200


@pytest.mark.parametrize(
    ("path", "answer", "status"),
    [
        ("/token", (500, b"<html>"), 503),
        ("/token", (200, b"[]"), 502),
        ("/token", (200, b'{"access_token": "x"}'), 502),
        ("/token", (401, b'{"error": "invalid_client"}'), 502),
        ("/token", (200, b'{"id_token": "' + b"x" * 2_000_000 + b'"}'), 502),
        ("/token", (302, b"{}"), 502),
        ("/keys", (200, b'{"keys": 3}'), 403),
        ("/keys", (200, b'{"keys": [{"kty": "RSA"}, 7]}'), 403),
        ("/keys", (404, b"{}"), 502),
        ("/userinfo", (200, b'{"sub": "somebody else"}'), 403),
        ("/userinfo", (200, b"a JWT"), 502),
    ],
)
def test_what_a_provider_must_not_answer_is_an_error_and_no_session(
    signing_in, browser_of, provider, store, caplog, path, answer, status
):
    browser = browser_of(signing_in(teams=(("vision", "/vision"),)))
    url = there_and_back(browser)
    provider.answers[path] = answer
    found = browser.get(url)
    assert found.status_code == status
    assert "nas_blockout=" not in found.headers.get("set-cookie", "")
    assert "sign" in caplog.text or "provider" in caplog.text
    assert (store.people(), actions(store)) == ((), [])


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": None},
        {"token_endpoint": "ftp://x"},
        {"jwks_uri": "https://[", "x": 1},
    ],
)
def test_a_provider_that_is_another_or_lacks_a_part_is_not_used(signing_in, browser_of, provider, changes):
    provider.metadata_changes = changes
    assert browser_of(signing_in()).get("/login/oidc").status_code == 502


def test_allowed_addresses_and_groups_both_have_to_hold(signing_in, browser_of, provider, store, told):
    app = signing_in(email_domains=("example.org",), groups=("/staff", "/guests"), new_owners="allowed")
    for claims, code in (
        ({}, "unverified"),
        ({**GROUPS, "email": "ann@example.org"}, "unverified"),
        ({**GROUPS, "email": "ann@example.org", "email_verified": "yes"}, "unverified"),
        ({**GROUPS, "email": "@example.org", "email_verified": True}, "unverified"),
        ({**GROUPS, "email": "ann@example.org@evil.example", "email_verified": True}, "not_allowed"),
        ({**GROUPS, "email": "ann@sub.example.org", "email_verified": True}, "not_allowed"),
        ({**MAIL, "groups": ["/vision"]}, "not_allowed"),
        ({**MAIL, "groups": "/staffer"}, "not_allowed"),
        (MAIL, "not_allowed"),
    ):
        provider.claims = {"sub": "s-1", **claims}
        browser = browser_of(app)
        del browser.headers["Accept"]
        told(sign_in(browser), 403, code)
        row = store.audit_log(limit=1)[0]
        assert (row.action, row.actor, row.subject) == ("login-refused", "sign-in", "s-1")
        assert row.detail == {"provider": provider.issuer, "reason": code}
    assert store.people() == ()
    provider.claims = {"sub": "s-1", **MAIL, **GROUPS}
    assert sign_in(browser_of(app)).status_code == 200
    provider.claims = {"sub": "s-1", **MAIL}  # who leaves the group is let in no longer
    assert sign_in(browser_of(app)).status_code == 403


def test_claims_of_the_user_information_count_where_the_token_has_none(signing_in, browser_of, provider, store):
    provider.userinfo = {**MAIL, **GROUPS, "iss": "https://evil.example"}
    browser = browser_of(signing_in(owner_claim="email", groups=("/staff",)))
    assert sign_in(browser).status_code == 200
    assert owner_of(browser) == "ann@example.org"
    assert store.people()[0].identity.issuer == provider.issuer


def test_scope_and_teams_follow_the_claims_at_every_sign_in(signing_in, browser_of, provider, store):
    settings = {
        "scope": "read",
        "administrators": (("realm.roles", "admin"), ("boss", "yes")),
        "teams": (("vision", "/vision"), ("speech", "/speech")),
    }
    store.add_member("speech", "bob")
    store.add_member("by-hand", "s-2")
    app = signing_in(**settings)
    browser = browser_of(app)
    assert sign_in(browser).status_code == 200
    assert owner_of(browser) == "s-1 (read-only)"
    provider.claims = {"sub": "s-1", **GROUPS, "realm": {"roles": ["x", "admin"]}}
    store.add_member("by-hand", "s-1")
    sign_in(other := browser_of(app))
    assert owner_of(other) == owner_of(browser) == "s-1 (administrator)"
    assert store.teams("s-1") == {"by-hand": ("s-1", "s-2"), "vision": ("s-1",)}
    assert (store.audit_log(action="team-add")[0].actor, store.audit_log(action="team-add")[0].subject) == (
        *("s-1", "vision"),
    )
    provider.claims = {"sub": "s-1", "groups": ["/speech"]}
    sign_in(other)
    assert owner_of(browser) == "s-1 (read-only)"
    assert store.teams("s-1") == {"by-hand": ("s-1", "s-2"), "speech": ("bob", "s-1")}


def test_nobody_becomes_an_owner_unless_that_is_set(signing_in, browser_of, provider, store, told):
    app = signing_in(new_owners="none")
    browser = browser_of(app)
    del browser.headers["Accept"]
    assert "tell an operator your ID: s-1" in told(sign_in(browser), 403, "unknown_person")["message"]
    assert store.tokens() == ()
    token = store.create_token("", owner="ann", scope="write")[1]
    store.add_person(Identity(provider.issuer, "s-1"), owner="ann")
    assert sign_in(browser).status_code == 200
    assert owner_of(browser) == "ann"
    assert browser.get("/v1/studies", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("name", ["ann", "ANN", "bob", "cid", "dee", "eve", "admin", "worker", "operator"])
def test_a_name_that_somebody_has_is_not_given_away(
    signing_in, browser_of, provider, store, settings, study, told, name
):
    store.create_token("", owner="Ann", scope="read")
    store.enqueue("tiny", document=study, config_hash="a", owner="bob")
    store.add_member("vision", "cid")
    store.add_person(Identity("https://other.example", "s-1"), owner="dee")
    app = signing_in(owner_claim="preferred_username")
    service = app.state.service
    app.state.service = replace(service, settings=replace(service.settings, owner_shares=(("eve", 2.0),)))
    provider.claims = {"sub": "s-1", "preferred_username": name}
    browser = browser_of(app)
    del browser.headers["Accept"]
    told(sign_in(browser), 403, "owner_taken")
    assert [person.owner for person in store.people()] == ["dee"]
    assert browser.get("/").status_code == 303


def test_a_person_keeps_the_owner_when_names_change_hands(signing_in, browser_of, provider, store):
    app = signing_in(owner_claim="preferred_username")
    provider.claims = {"sub": "s-1", "preferred_username": "Ann"}
    sign_in(ann := browser_of(app))
    provider.claims = {"sub": "s-1", "preferred_username": "ann-who-married"}
    sign_in(ann)
    assert owner_of(ann) == "ann"
    provider.claims = {"sub": "s-2", "preferred_username": "ann"}  # the provider has given the name to somebody else
    assert sign_in(browser_of(app)).status_code == 403
    assert [person.owner for person in store.people()] == ["ann"]


def test_who_is_disabled_is_shut_out_at_once_with_all_tokens(signing_in, browser_of, provider, store, told):
    app = signing_in()
    browser = browser_of(app)
    sign_in(browser)
    store.create_token("", owner="s-1", scope="write")
    store.disable_person("s-1")
    assert browser.get("/").status_code == 303
    assert all(token.revoked_at is not None for token in store.tokens("s-1"))
    del browser.headers["Accept"]
    told(sign_in(browser), 403, "disabled")
    assert store.audit_log(limit=1)[0].detail["reason"] == "disabled"
    store.enable_person("s-1")
    assert sign_in(browser).status_code == 200
    assert [token.revoked_at is None for token in store.tokens("s-1")] == [True, False]


def test_cookies_are_secure_and_the_address_is_that_of_the_proxy(signing_in, provider):
    with serving(signing_in()) as address:
        headers = {"X-Forwarded-Proto": "https", "Host": "studies.example.org"}
        gone = httpx.get(f"{address}/login/oidc", headers=headers)
    assert httpx.URL(gone.headers["location"]).params["redirect_uri"] == (
        "https://studies.example.org/login/oidc/callback"
    )
    cookie = gone.headers["set-cookie"]
    assert [part in cookie for part in ("Secure", "HttpOnly", "SameSite=lax", "Path=/login/oidc")] == [True] * 4
    with serving(signing_in(redirect_url="https://fixed.example/login/oidc/callback")) as address:
        gone = httpx.get(f"{address}/login/oidc")
    assert httpx.URL(gone.headers["location"]).params["redirect_uri"] == "https://fixed.example/login/oidc/callback"


def test_a_client_without_a_secret_and_one_whose_provider_wants_it_in_the_form(signing_in, browser_of, provider):
    browser = browser_of(signing_in(client_secret=None))
    assert sign_in(browser).status_code == 502  # this provider wants the secret
    assert provider.forms[-1]["client_id"] == CLIENT
    assert "client_secret" not in provider.forms[-1]
    provider.metadata_changes = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    sign_in(browser_of(signing_in()))
    assert (provider.forms[-1]["client_id"], provider.forms[-1]["client_secret"]) == (CLIENT, SECRET)


def test_no_secret_is_in_a_log(signing_in, browser_of, provider, caplog):
    app = signing_in()
    browser = browser_of(app)
    with caplog.at_level(logging.INFO, logger="nas_blockout.api"):
        url = there_and_back(browser)
        attempt = browser.cookies["nas_blockout_sign_in"]
        assert browser.get(url).status_code == 200
        assert browser.get(url).status_code == 400
        provider.token_changes = {"nonce": "another"}
        assert sign_in(browser_of(app)).status_code == 403
    assert "s-1 signed in by token 1" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("nas_blockout")]
    code = httpx.URL(url).params["code"]
    for secret in (SECRET, "the-access-token", code, attempt, browser.cookies["nas_blockout"], "eyJ"):
        assert not any(secret in line for line in ours)


def test_the_rate_limit_holds_for_the_way_there_and_back(limited, signing_in, client, told):
    app = limited(api_rate=1, sign_in=signing_in().state.service.settings.sign_in)
    for path in ("/login/oidc", "/login/oidc/callback"):
        stranger = client(None, to=app)
        assert [stranger.get(path).status_code for _ in range(8)][-1] == 429
