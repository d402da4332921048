"""Teams: groups of owners with whom studies are shared, to be seen but not changed."""

from collections.abc import Mapping

import sqlalchemy as sa

from services.store import tables
from services.store.accounts.audit import note
from services.store.accounts.tokens import require_owner
from services.store.database import Database
from services.store.errors import NotFound

_MEMBERS, _SHARES = tables.team_members.c, tables.shares.c


class Teams:
    """The part of `Store` for teams; see there for the contract. A team exists as long as it has members."""

    _database: Database

    def add_member(self, team: str, member: str) -> None:
        """Add an owner to a team, which is created by its first member; does nothing for a member.

        Raises:
            ValueError: One of the names is no name of an owner.
        """
        require_owner("team", team)
        require_owner("member", member)
        with self._database.writing() as connection:
            insertion = self._database.insert(tables.team_members).values(team=team, member=member)
            if connection.execute(insertion.on_conflict_do_nothing()).rowcount:
                note(connection, self._database.now(connection), "team-add", team, member=member)

    def remove_member(self, team: str, member: str) -> None:
        """Remove an owner from a team; without its last member, nothing is shared with it any more.

        Raises:
            NotFound: The owner is not a member.
        """
        with self._database.writing() as connection:
            membership = (_MEMBERS.team == team) & (_MEMBERS.member == member)
            if not connection.execute(sa.delete(tables.team_members).where(membership)).rowcount:
                raise NotFound(f"{member!r} is not a member of team {team!r}; `nas-blockout team list` lists them")
            left = connection.scalars(sa.select(sa.func.count()).where(_MEMBERS.team == team)).one()
            if not left:  # a later team of that name must not find them
                connection.execute(sa.delete(tables.shares).where(_SHARES.team == team))
            note(connection, self._database.now(connection), "team-remove", team, member=member)

    def teams(self, member: str | None = None) -> Mapping[str, tuple[str, ...]]:
        """Return the members of all teams, or of those that an owner belongs to, by name of the team."""
        query = sa.select(_MEMBERS.team, _MEMBERS.member).order_by(_MEMBERS.team, _MEMBERS.member)
        if member is not None:
            query = query.where(_MEMBERS.team.in_(sa.select(_MEMBERS.team).where(_MEMBERS.member == member)))
        found: dict[str, tuple[str, ...]] = {}
        with self._database.reading() as connection:
            for team, name in connection.execute(query):
                found[team] = (*found.get(team, ()), name)
        return found

    def share_study(self, study: str, team: str) -> None:
        """Share a submitted study with a team; does nothing if it is shared already.

        Raises:
            NotFound: There is no such study or team.
        """
        with self._database.writing() as connection:
            if connection.scalars(sa.select(tables.queue.c.id).where(tables.queue.c.study == study)).first() is None:
                raise NotFound(f"there is no study {study!r} in the queue")
            if connection.scalars(sa.select(_MEMBERS.team).where(_MEMBERS.team == team).limit(1)).first() is None:
                raise NotFound(f"there is no team {team!r}; an operator creates it with `nas-blockout team add`")
            insertion = self._database.insert(tables.shares).values(study=study, team=team)
            if connection.execute(insertion.on_conflict_do_nothing()).rowcount:
                note(connection, self._database.now(connection), "share", study, team=team)

    def unshare_study(self, study: str, team: str) -> None:
        """Share a study with a team no longer; does nothing if it is not shared."""
        with self._database.writing() as connection:
            share = (_SHARES.study == study) & (_SHARES.team == team)
            if connection.execute(sa.delete(tables.shares).where(share)).rowcount:
                note(connection, self._database.now(connection), "unshare", study, team=team)

    def shares(self, study: str) -> tuple[str, ...]:
        """Return the teams that a study is shared with, by name."""
        with self._database.reading() as connection:
            query = sa.select(_SHARES.team).where(_SHARES.study == study).order_by(_SHARES.team)
            return tuple(connection.scalars(query))

    def is_shared_with(self, study: str, member: str) -> bool:
        """Whether a study is shared with a team that an owner belongs to."""
        with self._database.reading() as connection:
            return connection.execute(_SHARED, {"study": study, "member": member}).first() is not None


_SHARED = (
    sa.select(_SHARES.team)
    .join_from(tables.shares, tables.team_members, _SHARES.team == _MEMBERS.team)
    .where(_SHARES.study == sa.bindparam("study"), _MEMBERS.member == sa.bindparam("member"))
    .limit(1)
)


def shared_with(member: "sa.BindParameter[str]") -> "sa.Select[tuple[str]]":
    """Return the query for the names of all studies that are shared with an owner."""
    joined = sa.select(_SHARES.study).join_from(tables.shares, tables.team_members, _SHARES.team == _MEMBERS.team)
    return joined.where(_MEMBERS.member == member)
