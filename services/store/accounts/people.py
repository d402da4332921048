"""People who sign in with an identity provider, and the owners that they are.

A person is known by issuer and subject, never by a name or an address, which a provider may let people choose and pass
on to others. Each has a token without a secret: sessions are opened with it, and revoking it ends them and shuts the
person out, as with any other token.
"""

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from services.store import tables
from services.store.accounts.audit import acting, note
from services.store.accounts.tokens import require_owner
from services.store.checked_values import one_of, storable
from services.store.database import Database
from services.store.errors import NotFound, SignInRefused, StudyConflict
from services.store.records import SCOPES, Actor, Identity, PersonRow, TokenRow

TOKEN_NAME = "sign-in"  # noqa: S105  # what lists of tokens show
_PEOPLE_LOCK = 7_361_902_457  # arbitrary, but the same in all releases: the key of a PostgreSQL advisory lock
_PEOPLE, _TOKENS = tables.people.c, tables.tokens.c
_OWNERS = (tables.tokens.c.owner, tables.queue.c.owner, tables.deletions.c.owner, _PEOPLE.owner)


class People:
    """The part of `Store` for people who sign in; see there for the contract."""

    _database: Database

    def sign_in(self, identity: Identity, *, scope: str) -> TokenRow | None:
        """Return the token of a person who signs in, with a scope from now on, or None for a stranger.

        Args:
            identity: Who it is, as the provider has vouched for.
            scope: ``read``, ``write`` or ``admin``; it holds for the person's other sessions as well.

        Raises:
            SignInRefused: The person is disabled.
        """
        one_of("scope", scope, SCOPES)
        with self._database.writing() as connection:
            row = connection.execute(_one(identity).with_for_update()).mappings().one_or_none()
            return None if row is None else self._enter(connection, row, scope)

    def sign_in_as_new(self, identity: Identity, *, owner: str, scope: str, reserved: Collection[str] = ()) -> TokenRow:
        """Return the token of a person who signs in, whom the first time makes an owner.

        Args:
            identity: Who it is, as the provider has vouched for.
            owner: Name of the owner, if the person is new.
            scope: ``read``, ``write`` or ``admin``.
            reserved: Names that nobody gets in this way, beside those that owners or members of teams have already.

        Raises:
            SignInRefused: The name is somebody else's, or the person is disabled.
            ValueError: The name is no name of an owner.
        """
        one_of("scope", scope, SCOPES)
        require_owner("owner", owner)
        with self._database.writing() as connection:
            self._database.serialize(connection, _PEOPLE_LOCK)  # names are checked against rows that do not exist yet
            row = connection.execute(_one(identity)).mappings().one_or_none()
            if row is None:
                if owner.lower() in {name.lower() for name in reserved} or _is_taken(connection, owner):
                    raise SignInRefused(
                        "taken", f"the name {owner!r} belongs to somebody here already; an operator can say who you are"
                    )
                with acting(Actor(owner)):
                    self._add(connection, identity, owner, scope)
                row = connection.execute(_one(identity)).mappings().one()
            return self._enter(connection, row, scope)

    def add_person(self, identity: Identity, *, owner: str) -> PersonRow:
        """Let somebody sign in as an owner, also as one that exists; does nothing if it is so.

        Args:
            identity: Who it is to the provider.
            owner: Name of the owner.

        Raises:
            ValueError: The name is no name of an owner, or the identity has no subject.
            StudyConflict: The identity is another owner, or the owner another identity.
        """
        require_owner("owner", owner)
        if not identity.subject or not identity.issuer or storable(identity.subject) != identity.subject:
            raise ValueError(f"an identity must have an issuer and a subject, got {identity}")
        with self._database.writing() as connection:
            self._database.serialize(connection, _PEOPLE_LOCK)
            same = (_PEOPLE.issuer == identity.issuer) & (_PEOPLE.subject == identity.subject)
            row = connection.execute(_select().where(same | (_PEOPLE.owner == owner))).mappings().first()
            if row is None:
                self._add(connection, identity, owner, "read")
                row = connection.execute(_one(identity)).mappings().one()
            found = _person(row)
        if (found.identity, found.owner) != (identity, owner):
            raise StudyConflict(
                f"{found.owner!r} signs in as {found.identity.subject!r} of {found.identity.issuer}; "
                f"remove that first, with `nas-blockout person remove {found.owner}`"
            )
        return found

    def remove_person(self, owner: str) -> None:
        """Let somebody sign in as an owner no longer, and end the sessions; the owner's studies and name stay.

        Raises:
            NotFound: Nobody signs in as this owner.
        """
        with self._database.writing() as connection:
            row, now = _of_owner(connection, owner), self._database.now(connection)
            _revoke(connection, _TOKENS.id == row["token"], now)
            connection.execute(sa.delete(tables.people).where(_PEOPLE.owner == owner))
            note(connection, now, "person-remove", owner, provider=row["issuer"], person=row["subject"])

    def disable_person(self, owner: str) -> None:
        """Revoke all tokens of an owner, end the sessions, and refuse to let the person sign in.

        Raises:
            NotFound: Nobody signs in as this owner.
        """
        with self._database.writing() as connection:
            _of_owner(connection, owner)
            now = self._database.now(connection)
            _revoke(connection, _TOKENS.owner == owner, now)
            note(connection, now, "person-disable", owner)

    def enable_person(self, owner: str) -> None:
        """Let a disabled person sign in again; the owner's other tokens stay revoked.

        Raises:
            NotFound: Nobody signs in as this owner.
        """
        with self._database.writing() as connection:
            row = _of_owner(connection, owner)
            connection.execute(sa.update(tables.tokens).where(_TOKENS.id == row["token"]).values(revoked_at=None))
            note(connection, self._database.now(connection), "person-enable", owner)

    def people(self) -> tuple[PersonRow, ...]:
        """Return all who may sign in, by name of the owner."""
        with self._database.reading() as connection:
            rows = connection.execute(_select().order_by(_PEOPLE.owner)).mappings()
            return tuple(_person(row) for row in rows)

    def person_of_token(self, token: int) -> PersonRow | None:
        """Return who opens sessions with a token, or None for a token with a secret."""
        with self._database.reading() as connection:
            row = connection.execute(_select().where(_PEOPLE.token_id == token)).mappings().one_or_none()
        return None if row is None else _person(row)

    def _add(self, connection: Connection, identity: Identity, owner: str, scope: str) -> None:
        now = self._database.now(connection)
        # No secret has this hash: those of secrets are hexadecimal.
        values = {"name": TOKEN_NAME, "owner": owner, "scope": scope, "hash": f"{TOKEN_NAME} {uuid.uuid4()}"}
        insertion = sa.insert(tables.tokens).values(**values, created_at=now)
        token = connection.scalars(insertion.returning(_TOKENS.id)).one()
        who = {"issuer": identity.issuer, "subject": identity.subject}
        connection.execute(sa.insert(tables.people).values(**who, owner=owner, token_id=token, created_at=now))
        note(connection, now, "person-add", owner, provider=identity.issuer, person=identity.subject)

    def _enter(self, connection: Connection, row: RowMapping, scope: str) -> TokenRow:
        if row["disabled_at"] is not None:
            raise SignInRefused("disabled", f"{row['owner']!r} is disabled; ask an operator of the service")
        connection.execute(sa.update(tables.tokens).where(_TOKENS.id == row["token"]).values(scope=scope))
        signed_in = sa.update(tables.people).where(_PEOPLE.token_id == row["token"])
        connection.execute(signed_in.values(signed_in_at=self._database.now(connection)))
        columns = [column for column in tables.tokens.c if column.name != "hash"]
        token = connection.execute(sa.select(*columns).where(_TOKENS.id == row["token"])).mappings().one()
        return TokenRow(**token)


def _is_taken(connection: Connection, owner: str) -> bool:
    """Whether a name is that of an owner, or of a member of a team; case does not tell names apart."""
    for column in (*_OWNERS, tables.team_members.c.member):
        if connection.execute(sa.select(column).where(sa.func.lower(column) == owner.lower()).limit(1)).first():
            return True
    return False


def _revoke(connection: Connection, which: "sa.ColumnElement[bool]", now: datetime) -> None:
    ids = sa.select(_TOKENS.id).where(which)
    connection.execute(sa.delete(tables.web_sessions).where(tables.web_sessions.c.token_id.in_(ids)))
    connection.execute(sa.update(tables.tokens).where(which, _TOKENS.revoked_at.is_(None)).values(revoked_at=now))


def _select() -> "sa.Select[Any]":
    names = (_PEOPLE.issuer, _PEOPLE.subject, _PEOPLE.owner, _PEOPLE.token_id.label("token"), _TOKENS.scope)
    moments = (_PEOPLE.created_at, _PEOPLE.signed_in_at, _TOKENS.revoked_at.label("disabled_at"))
    return sa.select(*names, *moments).join_from(tables.people, tables.tokens, _PEOPLE.token_id == _TOKENS.id)


def _one(identity: Identity) -> "sa.Select[Any]":
    return _select().where(_PEOPLE.issuer == identity.issuer, _PEOPLE.subject == identity.subject)


def _of_owner(connection: Connection, owner: str) -> RowMapping:
    row = connection.execute(_select().where(_PEOPLE.owner == owner)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"nobody signs in as {owner!r}; `nas-blockout person list` lists who does")
    return row


def _person(row: RowMapping) -> PersonRow:
    rest = {name: value for name, value in row.items() if name not in ("issuer", "subject")}
    return PersonRow(identity=Identity(row["issuer"], row["subject"]), **rest)
