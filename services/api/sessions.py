"""Sessions of the web page: a signed cookie that names a token, and a CSRF token for its forms."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

COOKIE = "nas_blockout"
SECONDS = 12 * 3600
_VERSION = "1"  # of the cookie; another one is not read, so that its format can change
_MAX_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Session:
    """A session of the web page.

    Args:
        token: ID of the token with which it was opened; 0 is the secret of the service.
        cookie: Value of its cookie.
    """

    token: int
    cookie: str


class Signer:
    """Signs and verifies with HMAC-SHA-256, by keys derived from one secret.

    Args:
        secret: Secret of the service; changing it ends all sessions.
    """

    def __init__(self, secret: str) -> None:
        self._session_key = _derived(secret, "session")
        self._form_key = _derived(secret, "form")

    def open(self, token: int, *, now: float | None = None) -> Session:
        """Return a new session of a token, which expires after 12 hours."""
        ends = int((time.time() if now is None else now) + SECONDS)
        text = f"{_VERSION}.{token}.{ends}.{secrets.token_hex(16)}"
        return Session(token, f"{text}.{_mac(self._session_key, text)}")

    def read(self, cookie: str, *, now: float | None = None) -> Session | None:
        """Return the session of a cookie, or None if its signature is invalid or it has expired."""
        text, _, mac = cookie.rpartition(".")
        if len(cookie) > _MAX_CHARACTERS or not cookie.isascii():
            return None
        if not hmac.compare_digest(mac, _mac(self._session_key, text)):
            return None
        version, token, ends, _ = text.split(".")  # signed, and so written by `open`: it has these four parts
        moment = time.time() if now is None else now
        return Session(int(token), cookie) if version == _VERSION and moment < int(ends) else None

    def proof(self, session: Session) -> str:
        """Return the CSRF token of a session, which its forms carry and no other site can know."""
        return _mac(self._form_key, session.cookie)

    def proves(self, session: Session, proof: str) -> bool:
        """Whether a form carries the CSRF token of its session."""
        return hmac.compare_digest(self.proof(session).encode(), proof.encode("utf-8", "replace"))


def _derived(secret: str, use: str) -> bytes:
    # A key for each use: what is signed for one can never pass for the other.
    return hmac.digest(secret.encode(), f"nas-blockout {use}".encode(), "sha256")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
