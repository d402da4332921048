"""A small identity provider on the loopback, with keys of its own: it does what it must, or what a test wants."""

import base64
import hashlib
import html
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, RSAKey

from tests.services.serving import answering

CLIENT, SECRET = "nas-blockout", "the-secret-of-the-client"


class IdentityProvider:
    """Signs in whoever comes, as the person in `claims`, for the client `CLIENT` with `SECRET`.

    Tests change its attributes: `claims` and `userinfo` of the person; `token_changes`, which go over the claims of the
    ID token (None leaves one out); `metadata_changes`; `key` signs, and `published` can be read; `algorithm`; `sleep`,
    seconds before every answer; `asks`, whether a page asks before it sends the browser back; `returned`, what comes
    back to the browser instead; `answers`, by path, what is said instead.
    """

    def __init__(self) -> None:
        self.issuer = ""
        self.key: Key = ECKey.generate_key("P-256", {"kid": "first"})
        self.published: list[Key] = [self.key]
        self.algorithm = "ES256"
        self.claims: dict[str, Any] = {"sub": "s-1"}
        self.userinfo: dict[str, Any] = {}
        self.token_changes: dict[str, Any] = {}
        self.metadata_changes: dict[str, Any] = {}
        self.returned: dict[str, Any] = {}
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.sleep = 0.0
        self.asks = False
        self.asked: Counter[str] = Counter()
        self.forms: list[dict[str, str]] = []
        self._codes: dict[str, dict[str, str]] = {}

    def rotate(self, kid: str | None, *, rsa: bool = False) -> None:
        """Sign with another key, and publish only that one."""
        parameters = {} if kid is None else {"kid": kid}
        self.key = RSAKey.generate_key(2048, parameters) if rsa else ECKey.generate_key("P-256", parameters)
        self.algorithm, self.published = "RS256" if rsa else "ES256", [self.key]

    def metadata(self) -> dict[str, Any]:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        told = {name: f"{self.issuer}/{path}" for name, path in paths.items()}
        told |= {"userinfo_endpoint": f"{self.issuer}/userinfo", "end_session_endpoint": f"{self.issuer}/logout"}
        return {"issuer": self.issuer, **told, **self.metadata_changes}

    def authorize(self, query: Mapping[str, str]) -> str:
        """Where the browser is sent back to."""
        assert (query["client_id"], query["response_type"]) == (CLIENT, "code")
        assert "openid" in query["scope"].split()
        assert (query["code_challenge_method"], len(query["nonce"]) >= 32) == ("S256", True)
        code = base64.urlsafe_b64encode(hashlib.sha256(query["state"].encode()).digest()).decode()
        self._codes[code] = dict(query)
        back = {"code": code, "state": query["state"], "iss": self.issuer, **self.returned}
        return f"{query['redirect_uri']}?{urlencode({key: value for key, value in back.items() if value is not None})}"

    def token(self, form: Mapping[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        self.forms.append(dict(form))
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if authorization != f"Basic {basic}":
            return 401, {"error": "invalid_client"}
        begun = self._codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if begun is None or begun["code_challenge"] != challenge.decode().rstrip("="):
            return 400, {"error": "invalid_grant", "error_description": "<script>"}
        if begun["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        tokens = {"access_token": "the-access-token", "token_type": "Bearer", "expires_in": 300}
        return 200, {**tokens, "id_token": self.id_token(begun["nonce"])}

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        times = {"iat": now, "exp": now + 300}
        claims = {"iss": self.issuer, "aud": CLIENT, "nonce": nonce, **times, **self.claims, **self.token_changes}
        told = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "none":
            parts = ({"alg": "none"}, told)
            return (
                ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
                + "."
            )
        header = {"alg": self.algorithm} | ({"kid": self.key.kid} if self.key.kid else {})
        return jwt.encode(header, told, self.key, algorithms=[self.algorithm])

    def keys(self) -> dict[str, Any]:
        other = {"kty": "made-up", "kid": "other"}
        return {"keys": [other, *KeySet([*self.published]).as_dict(private=False)["keys"]]}


class Handler(BaseHTTPRequestHandler):
    """Serves the provider that a subclass names."""

    provider: IdentityProvider

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self._instead(url.path):
            return
        if url.path == "/authorize":
            back = self.provider.authorize(query)
            if self.provider.asks:
                self._send(200, f'<a href="{html.escape(back)}">Allow</a>'.encode())
            else:
                self._send(302, b"", location=back)
        elif url.path == "/logout":
            self._send(200, b"logged out at the provider")
        elif url.path == "/userinfo":
            assert self.headers["Authorization"] == "Bearer the-access-token"
            self._json(200, {"sub": self.provider.claims["sub"], **self.provider.userinfo})
        else:
            documents = {"/.well-known/openid-configuration": self.provider.metadata, "/keys": self.provider.keys}
            self._json(200, documents[url.path]()) if url.path in documents else self._send(404, b"{}")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if not self._instead(self.path):
            form = {name: values[0] for name, values in parse_qs(content).items()}
            self._json(*self.provider.token(form, self.headers.get("Authorization", "")))

    def _instead(self, path: str) -> bool:
        self.provider.asked[path] += 1
        time.sleep(self.provider.sleep)
        if path in self.provider.answers:
            self._send(*self.provider.answers[path])
        return path in self.provider.answers

    def _json(self, status: int, document: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(document).encode())

    def _send(self, status: int, content: bytes, location: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/json")
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def providing(host: str = "127.0.0.1") -> Iterator[IdentityProvider]:
    """Run an identity provider; its issuer has this name of the loopback."""
    provider = IdentityProvider()
    with answering(type("Own", (Handler,), {"provider": provider})) as address:
        provider.issuer = address.replace("127.0.0.1", host)
        yield provider
