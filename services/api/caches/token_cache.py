"""Who has a secret or a session, asked of the store; where nothing is changed, remembered for less than a second."""

import hashlib
import hmac
import time
from dataclasses import dataclass

from services.store import Store, TokenRow

ROOT_OWNER = "admin"
ROOT_TOKEN = 0
REMEMBERED_SECONDS = 0.9
MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Args:
        token: Identity of the token; 0 stands for the secret of the service.
        owner: Whose studies are seen and changed.
        scope: ``read`` or ``write``.
    """

    token: int
    owner: str
    scope: str

    @property
    def writes(self) -> bool:
        """Whether studies may be given, cancelled, resumed and extended."""
        return self.scope == "write"


_ROOT = Caller(ROOT_TOKEN, ROOT_OWNER, "write")


class Callers:
    """Knows callers by their secrets, of which it keeps hashes, and by the identities of their tokens.

    Args:
        store: Holds the tokens.
        secret: Of the service; itself a token.
    """

    def __init__(self, store: Store, secret: str) -> None:
        self._store, self._root = store, secret.encode()
        self._recent: dict[bytes | int, tuple[Caller, float]] = {}

    def recent(self, key: str | int) -> Caller | None:
        """Return who had a secret, or the token of an identity, less than a second ago; touches no database."""
        found = self._recent.get(_kept(key))
        return found[0] if found is not None and time.monotonic() - found[1] < REMEMBERED_SECONDS else None

    def ask(self, key: str | int) -> Caller | None:
        """Return who has a secret, or the token of an identity, now; None if it has ended or was revoked."""
        asked = time.monotonic()
        caller = self._by_secret(key) if isinstance(key, str) else self._by_token(key)
        if caller is not None:
            if len(self._recent) >= MOST_REMEMBERED:
                self._recent.clear()
            self._recent[_kept(key)] = caller, asked
        return caller

    def _by_secret(self, secret: str) -> Caller | None:
        """Return who has a secret, or None; the secret of the service is compared in constant time."""
        if self._root and hmac.compare_digest(self._root, secret.encode("utf-8", "replace")):
            return _ROOT
        return _caller(self._store.token(secret))

    def _by_token(self, token: int) -> Caller | None:
        return _ROOT if token == ROOT_TOKEN else _caller(self._store.valid_token(token))


def _caller(row: TokenRow | None) -> Caller | None:
    return None if row is None else Caller(row.id, row.owner, row.scope)


def _kept(key: str | int) -> bytes | int:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() if isinstance(key, str) else key
