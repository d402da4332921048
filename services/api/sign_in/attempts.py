"""Sign-ins on their way: what a browser, its provider and this service know of one another, and use once."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from services.store import Store

ATTEMPT_COOKIE = "nas_blockout_sign_in"
ATTEMPT_SECONDS = 600  # in which a person enters a password at the provider, and perhaps a second factor
_COOKIE_BYTES = 32
_MAX_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Attempt:
    """What follows from the cookie of a sign-in.

    Args:
        state: Goes to the provider and comes back by the browser: only one that has the cookie can have begun it.
        nonce: Goes to the provider and comes back in the ID token: it was made for this sign-in.
        verifier: Goes to the provider's token endpoint only; before, the provider has got its hash (PKCE, RFC 7636).
    """

    state: str
    nonce: str
    verifier: str


class Attempts:
    """Begins sign-ins, and lets each be used once, in whichever process the browser comes back to.

    All values are derived from a random cookie by keys of their own, so that nothing has to be stored but that the
    sign-in has begun, by a hash from which none of them follows.

    Args:
        store: Holds which have begun.
        secret: Secret of the service.
    """

    def __init__(self, store: Store, secret: str) -> None:
        self._store = store
        self._keys = {
            use: hmac.digest(secret.encode(), f"nas-blockout sign-in {use}".encode(), "sha256")
            for use in ("row", "state", "nonce", "verifier")
        }

    def begin(self) -> tuple[str, Attempt]:
        """Begin a sign-in; return its cookie and what follows from it."""
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        self._store.begin_sign_in(self._derived("row", cookie), seconds=ATTEMPT_SECONDS)
        return cookie, self._of(cookie)

    def use(self, cookie: str, state: str) -> Attempt | None:
        """Return the sign-in of a browser that comes back, which ends with it; None if it began elsewhere, or ended.

        Args:
            cookie: Of the browser; may be empty.
            state: What has come back from the provider; may be anything.
        """
        if not cookie or len(cookie) > _MAX_CHARACTERS or not cookie.isascii():
            return None
        attempt = self._of(cookie)
        # Compared first: another site must not end a sign-in by sending its browser here with a made-up state.
        if not hmac.compare_digest(attempt.state.encode(), state.encode("utf-8", "replace")):
            return None
        return attempt if self._store.use_sign_in(self._derived("row", cookie)) else None

    def _of(self, cookie: str) -> Attempt:
        return Attempt(*(self._derived(use, cookie) for use in ("state", "nonce", "verifier")))

    def _derived(self, use: str, cookie: str) -> str:
        return hmac.new(self._keys[use], cookie.encode(), hashlib.sha256).hexdigest()
