"""Sessions of the page: a signed cookie that names a token, and the proof that a form is the page's own."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

COOKIE = "nas_blockout"
SECONDS = 12 * 3600
_VERSION = "1"
_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Session:
    """Who has opened the page.

    Args:
        token: Identity of the token with which it was opened; 0 stands for the secret of the service.
        cookie: The value of its cookie.
    """

    token: int
    cookie: str


class Signer:
    """Signs and checks by HMAC-SHA-256, with keys that are derived from one secret.

    Args:
        secret: Of the service; sessions end when it changes.
    """

    def __init__(self, secret: str) -> None:
        self._session_key = _derived(secret, "session")
        self._form_key = _derived(secret, "form")

    def open(self, token: int, *, now: float | None = None) -> Session:
        """Return a new session of a token, which ends after half a day."""
        ends = int((time.time() if now is None else now) + SECONDS)
        text = f"{_VERSION}.{token}.{ends}.{secrets.token_hex(16)}"
        return Session(token, f"{text}.{_mac(self._session_key, text)}")

    def read(self, cookie: str, *, now: float | None = None) -> Session | None:
        """Return the session of a cookie, or None if it was not signed here or has ended."""
        text, _, mac = cookie.rpartition(".")
        if len(cookie) > _MOST_CHARACTERS or not cookie.isascii():
            return None
        if not hmac.compare_digest(mac, _mac(self._session_key, text)):
            return None
        version, token, ends, _ = text.split(".")
        moment = time.time() if now is None else now
        return Session(int(token), cookie) if version == _VERSION and moment < int(ends) else None

    def proof(self, session: Session) -> str:
        """Return what a form of a session carries, which no other site can know."""
        return _mac(self._form_key, session.cookie)

    def proves(self, session: Session, proof: str) -> bool:
        """Whether a form carries the proof of its session."""
        return hmac.compare_digest(self.proof(session).encode(), proof.encode("utf-8", "replace"))


def _derived(secret: str, use: str) -> bytes:
    return hmac.digest(secret.encode(), f"nas-blockout {use}".encode(), "sha256")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
