"""Ways to the identity provider and back: rows that are there from the beginning of a sign-in until it is used."""

from datetime import timedelta

import sqlalchemy as sa

from services.store import tables
from services.store.accounts.audit import acting, note
from services.store.database import Database
from services.store.records import Actor, Identity

REFUSER = "sign-in"  # the actor of refusals: who was refused is nobody here


class SignIns:
    """The part of `Store` for sign-ins that have begun; see there for the contract.

    Only a hash is stored, from which nothing follows that was sent to the provider.
    """

    _database: Database

    def begin_sign_in(self, digest: str, *, seconds: float) -> None:
        """Add a sign-in, and delete those that have expired.

        Args:
            digest: Hash of its secret.
            seconds: After how long it expires.
        """
        columns = tables.sign_ins.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(sa.delete(tables.sign_ins).where(columns.expires_at <= now))
            values = {"hash": digest, "expires_at": now + timedelta(seconds=seconds)}
            connection.execute(sa.insert(tables.sign_ins).values(**values))

    def use_sign_in(self, digest: str) -> bool:
        """End a sign-in; return whether it was there: of several processes that try, one is told so."""
        columns = tables.sign_ins.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            used = sa.delete(tables.sign_ins).where(columns.hash == digest, columns.expires_at > now)
            return bool(connection.execute(used).rowcount)

    def note_refusal(self, identity: Identity, *, reason: str) -> None:
        """Record that somebody whom an identity provider vouches for was not let in.

        Args:
            identity: Who it is.
            reason: Why, a word for programs.
        """
        with self._database.writing() as connection, acting(Actor(REFUSER)):
            now = self._database.now(connection)
            note(connection, now, "login-refused", identity.subject, provider=identity.issuer, reason=reason)
