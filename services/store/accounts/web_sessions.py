"""Sessions of the web page: rows that logging out, or revoking the token, deletes for every process at once."""

from datetime import timedelta

import sqlalchemy as sa

from services.store import tables
from services.store.accounts.audit import note
from services.store.database import Database


class WebSessions:
    """The part of `Store` for sessions of the web page; see there for the contract.

    Only a hash of a session's secret is stored, so that a copy of the database opens no session.
    """

    _database: Database

    def open_session(self, digest: str, *, token: int, seconds: float, provider: str | None = None) -> None:
        """Add a session, and delete those that have expired.

        Args:
            digest: Hash of its secret.
            token: ID of the token with which it was opened; 0 is the secret of the service.
            seconds: After how long it expires.
            provider: The identity provider that has vouched for its user, for the audit log.
        """
        columns = tables.web_sessions.c
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(sa.delete(tables.web_sessions).where(columns.expires_at <= now))
            values = {"hash": digest, "token_id": token, "created_at": now}
            expires_at = now + timedelta(seconds=seconds)
            connection.execute(sa.insert(tables.web_sessions).values(**values, expires_at=expires_at))
            note(connection, now, "login", **({} if provider is None else {"provider": provider}))

    def session_token(self, digest: str) -> int | None:
        """Return the ID of the token with which a session was opened; None if it has ended, or never was."""
        with self._database.reading() as connection:
            row = connection.execute(_ONE, {"digest": digest}).one_or_none()
            if row is None or row.expires_at <= self._database.now(connection):
                return None
        return int(row.token_id)

    def end_session(self, digest: str) -> None:
        """End a session; does nothing if it has ended."""
        with self._database.writing() as connection:
            ended = connection.execute(sa.delete(tables.web_sessions).where(tables.web_sessions.c.hash == digest))
            if ended.rowcount:
                note(connection, self._database.now(connection), "logout")


_ONE = sa.select(tables.web_sessions.c.token_id, tables.web_sessions.c.expires_at).where(
    tables.web_sessions.c.hash == sa.bindparam("digest")
)
