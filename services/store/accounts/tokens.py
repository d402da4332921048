"""API tokens: each grants an owner a scope; its secret is shown once, and only a hash of it is stored."""

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from services.store import tables
from services.store.accounts.audit import note
from services.store.checked_values import one_of, storable
from services.store.database import Database
from services.store.errors import NotFound, TokenLimit
from services.store.records import SCOPES, TokenRow

SECRET_PREFIX = "nab_"  # noqa: S105  # lets scanners find leaked secrets in logs and repositories
SECRET_BYTES = 32
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MAX_NAME = 100
_LOCK = 7_361_902_458  # as of `people`, of tokens that owners make
_MAX_SECRET = 200  # far more than a secret has; longer input is not even hashed


class Tokens:
    """The part of `Store` for tokens; see there for the contract.

    A secret is 32 random bytes, stored as its SHA-256. A slow hash, which passwords need, would only cost time at every
    request: nobody can guess 256 random bits.
    """

    _database: Database

    def create_token(
        self, name: str, *, owner: str, scope: str, expires_at: datetime | None = None, most: int | None = None
    ) -> tuple[TokenRow, str]:
        """Create a token; return it with its secret, which cannot be read from the store again.

        Args:
            name: Purpose of the token, up to 100 characters.
            owner: Owner of the studies it gives access to: 1 to 64 letters, digits and ``._@-``, beginning with a
                letter or digit.
            scope: ``read``, ``write`` or ``admin``.
            expires_at: Expiry, with a time zone; never if omitted.
            most: How many tokens of the owner may be valid then; None for any number. The one that stands for signing
                in does not count.

        Raises:
            ValueError: A value breaks its rule.
            TokenLimit: There are as many already.
        """
        one_of("scope", scope, SCOPES)
        require_owner("owner", owner)
        if len(name) > _MAX_NAME or not name.isprintable():
            raise ValueError(f"name must be up to {_MAX_NAME} printable characters, got {name[:_MAX_NAME]!r}")
        if expires_at is not None and expires_at.tzinfo is None:
            raise ValueError(f"expires_at must have a time zone, got {expires_at}")
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        values = {"name": storable(name), "owner": owner, "scope": scope, "hash": _digest(secret)}
        with self._database.writing() as connection:
            now = self._database.now(connection)
            if most is not None:
                self._database.serialize(connection, _LOCK)  # two forms at a time must not both find room
                _require_room(connection, owner, most, now)
            if expires_at is not None and expires_at <= now:
                raise ValueError(f"expires_at must be in the future, got {expires_at}")
            insertion = sa.insert(tables.tokens).values(**values, created_at=now, expires_at=expires_at)
            token = connection.scalars(insertion.returning(tables.tokens.c.id)).one()
            row = connection.execute(_select().where(tables.tokens.c.id == token)).mappings().one()
            note(connection, now, "token-create", str(token), owner=owner, scope=scope)
        return _row(row), secret

    def token(self, secret: str) -> TokenRow | None:
        """Return the token with a secret, or None if it does not exist, has expired or was revoked."""
        if not secret.startswith(SECRET_PREFIX) or len(secret) > _MAX_SECRET:
            return None
        digest = _digest(secret)
        return self._valid(_BY_HASH, digest, digest)

    def valid_token(self, token: int) -> TokenRow | None:
        """Return a token by ID, or None if it does not exist, has expired or was revoked."""
        return self._valid(_BY_ID, token)

    def tokens(self, owner: str | None = None) -> tuple[TokenRow, ...]:
        """Return all tokens, or those of one owner, in order of creation; expired and revoked ones are included."""
        query = _select().order_by(tables.tokens.c.id)
        if owner is not None:
            query = query.where(tables.tokens.c.owner == owner)
        with self._database.reading() as connection:
            return tuple(_row(row) for row in connection.execute(query).mappings())

    def revoke_token(self, token: int) -> TokenRow:
        """Revoke a token, and end the sessions opened with it; does nothing if it is revoked already.

        Raises:
            NotFound: There is no token of that ID.
        """
        columns = tables.tokens.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            revocation = sa.update(tables.tokens).where(columns.id == token, columns.revoked_at.is_(None))
            revoked = connection.execute(revocation.values(revoked_at=now))
            connection.execute(sa.delete(tables.web_sessions).where(tables.web_sessions.c.token_id == token))
            row = connection.execute(_select().where(columns.id == token)).mappings().one_or_none()
            if row is not None and revoked.rowcount:
                note(connection, now, "token-revoke", str(token), owner=row["owner"])
        if row is None:
            raise NotFound(f"there is no token {token}; `nas-blockout token list` lists them")
        return _row(row)

    def _valid(self, query: "sa.Select[Any]", key: str | int, digest: str | None = None) -> TokenRow | None:
        with self._database.reading() as connection:
            row = connection.execute(query, {"key": key}).mappings().one_or_none()
            # The clock is asked only if it matters, since every request passes here; a server costs a round trip.
            now = self._database.now(connection) if row is not None and row["expires_at"] is not None else None
        if row is None or row["revoked_at"] is not None or (now is not None and row["expires_at"] <= now):
            return None
        # The index found the row by comparing byte by byte; this comparison does not depend on where they differ.
        if digest is not None and not hmac.compare_digest(row["hash"], digest):
            return None
        return _row(row)


def _require_room(connection: Connection, owner: str, most: int, now: datetime) -> None:
    columns = tables.tokens.c
    signing_in = sa.select(tables.people.c.token_id)
    valid = columns.revoked_at.is_(None) & (columns.expires_at.is_(None) | (columns.expires_at > now))
    count = sa.select(sa.func.count()).where(columns.owner == owner, valid, columns.id.not_in(signing_in))
    if connection.execute(count).scalar_one() >= most:
        raise TokenLimit(f"an owner may have {most} valid tokens, and {owner!r} has as many")


def require_owner(what: str, name: str) -> None:
    """Raise ValueError for what is no name of an owner."""
    if not _OWNER.fullmatch(name):
        raise ValueError(
            f"{what} must be 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit, got {name!r}"
        )


def _digest(secret: str) -> str:
    # Any header may come as a secret, also one that is no valid text; it must not raise.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _select() -> "sa.Select[Any]":
    return sa.select(tables.tokens)


_BY_HASH = _select().where(tables.tokens.c.hash == sa.bindparam("key"))
_BY_ID = _select().where(tables.tokens.c.id == sa.bindparam("key"))


def _row(row: "sa.RowMapping") -> TokenRow:
    return TokenRow(**{name: value for name, value in row.items() if name != "hash"})
