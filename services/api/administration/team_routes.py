"""Routes that share a study with a team."""

from typing import Annotated

from fastapi import APIRouter, Path

from services.api import auth
from services.api.administration.access import changeable, own
from services.api.auth import Reader, Writer
from services.api.caches.token_cache import Caller
from services.api.errors import not_found
from services.api.schemas import SharesView
from services.api.state import Service
from services.api.studies import Shared, error_responses
from services.store import acting

Team = Annotated[str, Path(max_length=64, description="Name of a team.")]

router = APIRouter(prefix="/v1/studies/{name}/teams", tags=["teams"])


def share(shared: Service, caller: Caller, name: str, team: str, *, on: bool) -> None:
    """Share a study of the caller with one of the caller's teams, or share it no longer."""
    auth.require_write(caller)
    row = changeable(shared, caller, name)
    known = shared.store.teams(None if caller.administers else caller.owner)
    if on and team not in known:  # the same for what does not exist: names of teams are for their members
        raise not_found("team of that name that you belong to")
    with acting(caller.actor):
        if on:
            shared.store.share_study(row.study, team)
        else:
            shared.store.unshare_study(row.study, team)


@router.get("", summary="List the teams of a study", responses=error_responses(404))
def list_shares(shared: Shared, caller: Reader, name: str) -> SharesView:
    """List the teams that a study is shared with."""
    row = own(shared, caller, name)
    return SharesView(study=row.study, teams=list(shared.store.shares(row.study)))


@router.put("/{team}", summary="Share a study with a team", responses=error_responses(403, 404))
def share_study(shared: Shared, caller: Writer, name: str, team: Team) -> SharesView:
    """Let the members of a team see a study and its results; only its owner and administrators change it."""
    share(shared, caller, name, team, on=True)
    return list_shares(shared, caller, name)


@router.delete("/{team}", summary="Share a study no longer", responses=error_responses(403, 404))
def unshare_study(shared: Shared, caller: Writer, name: str, team: Team) -> SharesView:
    """Share a study with a team no longer."""
    share(shared, caller, name, team, on=False)
    return list_shares(shared, caller, name)
