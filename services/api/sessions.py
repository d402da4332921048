"""Sessions of the web page: a random cookie, known to the store by a hash, and a CSRF token for the forms."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from services.store import Store

COOKIE = "nas_blockout"
SECONDS = 12 * 3600
_COOKIE_BYTES = 32
_MAX_CHARACTERS = 100  # more than twice what a cookie has; longer ones are not even hashed


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What the store knows a session by; the cookie cannot be found from it."""

    digest: str


class Sessions:
    """Opens and ends sessions, which the store keeps.

    256 random bits need no signature. Hashes of cookies are keyed by the secret of the service, so that changing it
    ends all sessions, as one expects of it.

    Args:
        store: Holds the sessions.
        secret: Secret of the service.
    """

    def __init__(self, store: Store, secret: str) -> None:
        self._store = store
        self._session_key = _derived(secret, "session")
        self._form_key = _derived(secret, "form")

    def open(self, token: int, *, provider: str | None = None) -> str:
        """Open a session of a token, which expires after 12 hours; return its cookie, which nobody has had before.

        Args:
            token: ID of the token.
            provider: The identity provider that has vouched for its user.
        """
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        digest = _mac(self._session_key, cookie)
        self._store.open_session(digest, token=token, seconds=SECONDS, provider=provider)
        return cookie

    def key(self, cookie: str) -> SessionKey | None:
        """Return what the store would know a cookie by, or None for what cannot be one."""
        if not cookie or len(cookie) > _MAX_CHARACTERS or not cookie.isascii():
            return None
        return SessionKey(_mac(self._session_key, cookie))

    def end(self, key: SessionKey) -> None:
        """End a session, for all processes of the service."""
        self._store.end_session(key.digest)

    def proof(self, cookie: str) -> str:
        """Return the CSRF token of a session, which its forms carry and no other site can know."""
        return _mac(self._form_key, cookie)

    def proves(self, cookie: str, proof: str) -> bool:
        """Whether a form carries the CSRF token of its session."""
        return hmac.compare_digest(self.proof(cookie).encode(), proof.encode("utf-8", "replace"))


def _derived(secret: str, use: str) -> bytes:
    # A key for each use: what is signed for one can never pass for the other.
    return hmac.digest(secret.encode(), f"nas-blockout {use}".encode(), "sha256")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
