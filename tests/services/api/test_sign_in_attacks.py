"""Signing in under attack: nothing opens a session but a provider's own answer to the browser that asked for it."""

import base64
import hmac
import json
import re
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from services.store import Store
from tests.services.api.signing_in import sign_in, there_and_back
from tests.services.identity_provider import CLIENT, SECRET, IdentityProvider, providing
from tests.services.serving import answering


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    """What the store keeps of people is tested on both of its databases elsewhere."""
    return sqlite_store


def refused(answer: httpx.Response, status: int, code: str) -> None:
    """An answer that opens no session, in the one shape of errors."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "nas_blockout=" not in answer.headers.get("set-cookie", "")


@pytest.fixture
def app(signing_in) -> FastAPI:
    return signing_in()


@pytest.fixture
def browser(app, client) -> httpx.Client:
    return client(None, to=app)


def changed(url: str, /, **parameters: str) -> str:
    return str(httpx.URL(url).copy_merge_params(parameters))


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(browser, app, client, provider, store):
    url = there_and_back(browser)
    victim = client(None, to=app)
    refused(victim.get(url), 400, "unknown_sign_in")  # login CSRF: the attacker's answer, in the victim's browser
    there_and_back(victim)
    refused(victim.get(url), 400, "unknown_sign_in")
    for state in ("", "x", "é", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "0" * 64):
        refused(browser.get(changed(url, state=state)), 400, "unknown_sign_in")
    assert provider.forms == []
    assert store.people() == ()
    assert browser.get(url).status_code == 200  # none of this has ended the sign-in of the browser that began it


def test_an_answer_is_used_once(browser, provider):
    url = there_and_back(browser)
    attempt = browser.cookies["nas_blockout_sign_in"]
    assert browser.get(url).status_code == 200
    assert "nas_blockout_sign_in" not in browser.cookies
    thief = httpx.Client(base_url=browser.base_url, cookies={"nas_blockout_sign_in": attempt})
    with thief:
        refused(thief.get(url), 400, "unknown_sign_in")
    assert len(provider.forms) == 1


def test_a_code_of_another_sign_in_is_refused_by_its_verifier(browser, app, client):
    stolen = httpx.URL(there_and_back(client(None, to=app))).params["code"]
    refused(browser.get(changed(there_and_back(browser), code=stolen)), 403, "code_refused")
    refused(browser.get(changed(there_and_back(browser), code="made-up")), 403, "code_refused")
    refused(browser.get(changed(there_and_back(browser), code="")), 403, "code_refused")


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "another-client"},
        {"aud": None},
        {"aud": ["another-client"], "azp": CLIENT},
        {"aud": [CLIENT, "another-client"], "azp": "another-client"},
        {"aud": [CLIENT, "another-client"]},
        {"aud": {"client": CLIENT}},
        {"exp": 1_000_000},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("nan")},
        {"exp": True},
        {"iat": 10**11},
        {"iat": None},
        {"nbf": 10**11},
        {"sub": ""},
        {"sub": None},
        {"sub": 7},
        {"sub": ["s-1"]},
        {"sub": "s" * 256},
        {"sub": "s\0"},
        {"sub": "ſ-1"},
        {"at_hash": "bm90IHRoZSBoYXNo"},
    ],
)
def test_a_token_that_breaks_a_rule_opens_no_session(browser, provider, store, changes):
    provider.token_changes = changes
    refused(sign_in(browser), 403, "invalid_id_token")
    assert (store.people(), store.tokens(), store.audit_log()) == ((), (), ())


def test_a_token_for_several_clients_is_for_us_if_it_was_made_for_us(browser, provider):
    provider.token_changes = {"aud": [CLIENT, "another-client"], "azp": CLIENT}
    assert sign_in(browser).status_code == 200


def test_a_signature_of_nobody_or_of_what_everybody_knows_is_refused(browser, provider):
    signed = provider.key
    provider.algorithm = "none"
    refused(sign_in(browser), 403, "invalid_id_token")
    provider.metadata_changes = {"id_token_signing_alg_values_supported": ["none", "HS256"]}
    provider.published = [signed, OctKey.generate_key(256, {"kid": "symmetric"})]
    for secret, kid in ((signed.as_pem(private=False), "first"), (SECRET.encode(), "first"), (b"", "symmetric")):
        provider.id_token = partial(by_hmac, provider, secret or provider.published[1].raw_value, kid)
        refused(sign_in(browser), 403, "invalid_id_token")


def by_hmac(provider: IdentityProvider, secret: bytes, kid: str, nonce: str) -> str:
    """An ID token that anybody can sign who has read the provider's public key."""
    claims = {"iss": provider.issuer, "aud": CLIENT, "sub": "s-1", "nonce": nonce, "iat": 1, "exp": 10**10}
    parts = [_encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": kid}, claims)]
    return ".".join([*parts, _encoded(hmac.digest(secret, ".".join(parts).encode(), "sha256"))])


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def test_a_key_that_the_provider_does_not_publish_is_refused_after_one_question(browser, provider):
    sign_in(browser)
    published = provider.published
    provider.key = ECKey.generate_key("P-256", {"kid": "of-an-attacker"})
    refused(sign_in(browser), 403, "invalid_id_token")
    provider.key = ECKey.generate_key("P-256", {"kid": "first"})
    refused(sign_in(browser), 403, "invalid_id_token")
    assert provider.asked["/keys"] == 3
    assert provider.published is published


def test_a_token_that_brings_its_own_key_is_refused(browser, provider):
    own = ECKey.generate_key("P-256", {"kid": "own"})

    def forged(nonce: str) -> str:
        header = {"alg": "ES256", "jwk": own.as_dict(private=False), "jku": "https://evil.example/keys"}
        claims = {"iss": provider.issuer, "aud": CLIENT, "sub": "s-1", "nonce": nonce, "iat": 1, "exp": 10**10}
        return jwt.encode(header, claims, own)

    provider.id_token = forged
    refused(sign_in(browser), 403, "invalid_id_token")


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "..", "é.é.é", "e30.e30.e30", "[" * 100_000])
def test_what_is_no_token_is_refused(browser, provider, token):
    provider.id_token = lambda nonce: token
    refused(sign_in(browser), 403, "invalid_id_token")


def test_an_answer_of_another_provider_is_not_taken_to_ours(browser, provider):
    """The mix-up attack: the browser went to one provider, and its answer says that it comes from another."""
    provider.returned = {"iss": "https://evil.example"}
    refused(sign_in(browser), 403, "invalid_id_token")
    assert provider.forms == []  # the code was sent nowhere
    provider.returned = {"iss": None}
    assert sign_in(browser).status_code == 200  # this provider does not promise to say so


def test_who_promises_to_name_the_issuer_has_to(signing_in, client, provider):
    provider.metadata_changes = {"authorization_response_iss_parameter_supported": True}
    provider.returned = {"iss": None}
    refused(sign_in(client(None, to=signing_in())), 403, "invalid_id_token")
    assert provider.forms == []


def test_an_error_of_the_provider_is_said_without_its_words(browser, provider, caplog):
    provider.returned = {"code": None, "error": "access_denied", "error_description": "<b>call 555</b>"}
    answer = sign_in(browser)
    refused(answer, 403, "refused_by_provider")
    assert "did not sign you in: access_denied" in answer.text
    provider.returned = {"error": "<script>alert(1)</script>"}
    browser.headers["Accept"] = "text/html"
    answer = sign_in(browser)
    assert answer.status_code == 403
    for text in (answer.text, caplog.text):
        assert "script>alert" not in text
        assert "555" not in text


@pytest.mark.parametrize("name", ["next", "return_to", "redirect_uri", "url", "RelayState", "post_logout_redirect_uri"])
def test_nothing_in_a_request_says_where_to_go(browser, provider, name):
    evil = "https://evil.example/"
    gone = browser.get("/login/oidc", params={name: evil}, headers={"Referer": evil})
    target = httpx.URL(gone.headers["location"])
    assert str(target).startswith(f"{provider.issuer}/authorize?")
    assert target.params["redirect_uri"] == str(browser.base_url.join("/login/oidc/callback"))
    answer = browser.get(changed(httpx.get(str(target)).headers["location"], **{name: evil}))
    assert re.findall(r'content="0; url=([^"]*)"', answer.text) == ["/"]
    assert "evil" not in answer.text + str(answer.headers)
    assert "evil" not in str(browser.post("/login", params={name: evil}, data={"token": "x", name: evil}).headers)


def test_a_session_is_never_one_that_was_there_before(browser, app, client, provider):
    """Session fixation: an attacker plants a cookie, also a valid one, and waits for the victim to sign in with it."""
    sign_in(attacker := client(None, to=app))
    planted = attacker.cookies["nas_blockout"]
    provider.claims = {"sub": "victim"}
    url = there_and_back(browser)
    for cookie in (planted, "made-up"):
        answer = browser.get(url, headers={"Cookie": f"nas_blockout={cookie}; {_cookies(browser)}"})
        if answer.status_code == 200:
            assert answer.cookies["nas_blockout"] not in (planted, "made-up")
    assert "s-1" in attacker.get("/").text
    assert "victim" not in attacker.get("/").text


def _cookies(browser: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in browser.cookies.items())


def test_the_cookie_of_a_sign_in_opens_nothing(browser):
    there_and_back(browser)
    attempt = browser.cookies["nas_blockout_sign_in"]
    for headers in ({"Cookie": f"nas_blockout={attempt}"}, {"Authorization": f"Bearer {attempt}"}):
        with httpx.Client(base_url=browser.base_url, headers=headers) as thief:
            assert thief.get("/").status_code == 303
            assert thief.get("/v1/studies").status_code == 401


def test_no_secret_is_the_token_of_a_person(browser, store):
    sign_in(browser)
    with store._database.reading() as connection:
        hashed = connection.exec_driver_sql("SELECT hash FROM tokens").scalar()
    for secret in (hashed, "sign-in", "nab_"):
        with httpx.Client(base_url=browser.base_url, headers={"Authorization": f"Bearer {secret}"}) as thief:
            assert thief.get("/v1/studies").status_code == 401


def test_the_same_subject_of_another_provider_is_another_person(signing_in, client, provider, store):
    sign_in(client(None, to=signing_in()))
    with providing() as other:
        stranger = client(None, to=signing_in(issuer=other.issuer))
        refused(sign_in(stranger), 403, "owner_taken")
    assert [person.identity.issuer for person in store.people()] == [provider.issuer]


class Trickle(BaseHTTPRequestHandler):
    """Sends a byte now and then, for longer than anybody waits."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with suppress(OSError):  # whoever asked has gone
            for _ in range(200):
                self.wfile.write(b" ")
                time.sleep(0.05)


def test_an_answer_that_trickles_in_is_not_waited_for(signing_in, client, told):
    """Timeouts of single reads would never be reached."""
    with answering(Trickle) as address:
        told(client(None, to=signing_in(seconds=0.5, issuer=address)).get("/login/oidc"), 503, "provider_unreachable")


def test_a_provider_of_the_wrong_name_is_no_provider(signing_in, client, provider: IdentityProvider):
    browser = client(None, to=signing_in(issuer=f"{provider.issuer}/"))
    refused(browser.get("/login/oidc"), 502, "provider_failed")
