"""Tokens of the service: who may do what, by a secret that is shown once and of which only a hash is kept."""

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.store import tables
from services.store.checked_values import one_of, storable
from services.store.database import Database
from services.store.errors import NotFound
from services.store.records import SCOPES, TokenRow

SECRET_PREFIX = "nab_"  # noqa: S105  # by which leaked secrets are found in logs and repositories
SECRET_BYTES = 32
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MOST_NAME = 100
_MOST_SECRET = 200


class Tokens:
    """The part of the store that knows tokens; `Store` has the contract.

    A secret is 32 random bytes. Its SHA-256 is kept: nobody can guess what has 256 random bits, so that a slow hash,
    which passwords need, would only cost time at every request.
    """

    _database: Database

    def create_token(
        self, name: str, *, owner: str, scope: str, expires_at: datetime | None = None
    ) -> tuple[TokenRow, str]:
        """Make a token; return it with its secret, which nobody can read from the store again.

        Args:
            name: What it is for, up to 100 characters.
            owner: Whose studies it gives access to: 1 to 64 letters, digits and ``._@-``, a letter or digit first.
            scope: ``read`` or ``write``.
            expires_at: When it ends, aware of its time zone; never if left out.

        Raises:
            ValueError: A value breaks its rule.
        """
        one_of("scope of a token", scope, SCOPES)
        if not _OWNER.fullmatch(owner):
            raise ValueError(f"an owner is named by 1 to 64 letters, digits and . _ @ -, got {owner!r}")
        if len(name) > _MOST_NAME or not name.isprintable():
            raise ValueError(f"a token is named by up to {_MOST_NAME} printable characters, got {name[:_MOST_NAME]!r}")
        if expires_at is not None and expires_at.tzinfo is None:
            raise ValueError(f"the moment at which a token ends has a time zone, got {expires_at}")
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        values = {"name": storable(name), "owner": owner, "scope": scope, "hash": _digest(secret)}
        with self._database.writing() as connection:
            now = self._database.now(connection)
            if expires_at is not None and expires_at <= now:
                raise ValueError(f"a token ends in the future, got {expires_at}")
            insertion = sa.insert(tables.tokens).values(**values, created_at=now, expires_at=expires_at)
            made = connection.scalars(insertion.returning(tables.tokens.c.id)).one()
            row = connection.execute(_select().where(tables.tokens.c.id == made)).mappings().one()
        return _row(row), secret

    def token(self, secret: str) -> TokenRow | None:
        """Return the token of a secret, or None if there is none, it has ended or was revoked."""
        if not secret.startswith(SECRET_PREFIX) or len(secret) > _MOST_SECRET:
            return None
        digest = _digest(secret)
        return self._valid(_BY_HASH, digest, digest)

    def valid_token(self, token: int) -> TokenRow | None:
        """Return a token by its identity, or None if there is none, it has ended or was revoked."""
        return self._valid(_BY_ID, token)

    def tokens(self, owner: str | None = None) -> tuple[TokenRow, ...]:
        """Return all tokens, or those of an owner, ended and revoked ones too, in the order in which they were made."""
        query = _select().order_by(tables.tokens.c.id)
        if owner is not None:
            query = query.where(tables.tokens.c.owner == owner)
        with self._database.reading() as connection:
            return tuple(_row(row) for row in connection.execute(query).mappings())

    def revoke_token(self, token: int) -> TokenRow:
        """End a token now; again does nothing.

        Raises:
            NotFound: There is none of that identity.
        """
        columns = tables.tokens.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(
                sa.update(tables.tokens).where(columns.id == token, columns.revoked_at.is_(None)).values(revoked_at=now)
            )
            row = connection.execute(_select().where(columns.id == token)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"there is no token {token}; `nas-blockout token list` names them")
        return _row(row)

    def _valid(self, query: "sa.Select[Any]", key: str | int, digest: str | None = None) -> TokenRow | None:
        with self._database.reading() as connection:
            row = connection.execute(query, {"key": key}).mappings().one_or_none()
            now = self._database.now(connection) if row is not None and row["expires_at"] is not None else None
        if row is None or row["revoked_at"] is not None or (now is not None and row["expires_at"] <= now):
            return None
        if digest is not None and not hmac.compare_digest(row["hash"], digest):
            return None
        return _row(row)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _select() -> "sa.Select[Any]":
    return sa.select(tables.tokens)


_BY_HASH = _select().where(tables.tokens.c.hash == sa.bindparam("key"))
_BY_ID = _select().where(tables.tokens.c.id == sa.bindparam("key"))


def _row(row: "sa.RowMapping") -> TokenRow:
    return TokenRow(**{name: value for name, value in row.items() if name != "hash"})
