"""Cache of validated tokens: trusted for less than a second, and only for requests that change nothing."""

import hashlib
import hmac
import time
from dataclasses import dataclass, replace

from services.api.sessions import SessionKey
from services.store import Actor, Store

ROOT_OWNER = "admin"
ROOT_TOKEN = 0
TOKEN_SECONDS = 0.9  # a revoked token can read for this long, which the guide of the service states as a second
MAX_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a request.

    Args:
        token: ID of the token; 0 is the secret of the service.
        owner: Owner of the studies it gives access to.
        scope: ``read``, ``write`` or ``admin``.
        session: The session of the web page that the request belongs to, or None.
    """

    token: int
    owner: str
    scope: str
    session: SessionKey | None = None

    @property
    def writes(self) -> bool:
        """Whether it may submit, cancel, resume, extend, delete and share studies."""
        return self.scope in ("write", "admin")

    @property
    def administers(self) -> bool:
        """Whether it may do so with the studies of all owners, and read the audit log."""
        return self.scope == "admin"

    @property
    def actor(self) -> Actor:
        """The caller, as the audit log names it."""
        return Actor(self.owner, self.token)


_ROOT = Caller(ROOT_TOKEN, ROOT_OWNER, "admin")
Key = str | int | SessionKey


class Callers:
    """Authenticates callers by secret, of which only hashes are kept in memory, by session, or by token ID.

    Args:
        store: Holds the tokens.
        secret: Secret of the service, which is itself a token.
        fresh_seconds: Age up to which a validated token is reused.
        max_tokens: Number of tokens to remember; beyond it all are forgotten.
    """

    def __init__(
        self, store: Store, secret: str, *, fresh_seconds: float = TOKEN_SECONDS, max_tokens: int = MAX_TOKENS
    ) -> None:
        self._fresh_seconds, self._max_tokens = fresh_seconds, max_tokens
        self._store, self._root = store, secret.encode()
        self._recent: dict[bytes | int | SessionKey, tuple[Caller, float]] = {}

    def recent(self, key: Key) -> Caller | None:
        """Return the caller with a key if validated recently, else None; never queries the database."""
        caller, validated_at = self._recent.get(_cache_key(key), (None, 0.0))
        return caller if time.monotonic() - validated_at < self._fresh_seconds else None

    def remembered(self, key: Key) -> Caller | None:
        """Return the caller last validated with a key, however long ago: to count requests by, never to answer them."""
        return self._recent.get(_cache_key(key), (None, 0.0))[0]

    def ask(self, key: Key) -> Caller | None:
        """Return the caller with a secret, session or token ID; None if it does not exist, has expired or has ended."""
        asked = time.monotonic()  # before the query: a token that is revoked meanwhile must not live longer for it
        if isinstance(key, SessionKey):
            token = self._store.session_token(key.digest)
            found = None if token is None else self._of(token)
            caller = None if found is None else replace(found, session=key)
        else:
            caller = self._of(key)
        if caller is not None:
            if len(self._recent) >= self._max_tokens:
                self._recent.clear()
            self._recent[_cache_key(key)] = caller, asked
        return caller

    def still_valid(self, caller: Caller) -> bool:
        """Whether the session or token of a caller has not ended meanwhile."""
        return self.ask(caller.token if caller.session is None else caller.session) is not None

    def forget(self, key: Key) -> None:
        """Trust a caller no longer without asking the store: the session has ended."""
        self._recent.pop(_cache_key(key), None)

    def _of(self, key: str | int) -> Caller | None:
        if key == ROOT_TOKEN or (isinstance(key, str) and self._is_root(key)):
            return _ROOT
        row = self._store.token(key) if isinstance(key, str) else self._store.valid_token(key)
        return None if row is None else Caller(row.id, row.owner, row.scope)

    def _is_root(self, secret: str) -> bool:
        """Whether a secret is that of the service, which is compared in constant time; tokens are found by hash."""
        return bool(self._root) and hmac.compare_digest(self._root, secret.encode("utf-8", "replace"))


def _cache_key(key: Key) -> bytes | int | SessionKey:
    # Secrets themselves are not kept, so that a dump of the memory has none.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() if isinstance(key, str) else key
