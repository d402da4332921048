"""The page of the queue: where one's studies stand in line."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import Response

from services.api.administration.queue_routes import standing
from services.api.schemas import WaitingView
from services.api.web import Visit, Visited, digest, frame, rendered

router = APIRouter(include_in_schema=False)


@router.get("/queue")
def queue_page(visited: Visited) -> Response:
    """Where one's studies stand in line."""
    return rendered("queue", here="queue", **_standing(visited), **frame(visited), announcement="")


@router.get("/parts/queue")
def queue_part(visited: Visited, digest: str = "", places: str = "") -> Response:
    """The queue, or 204 if it has not changed."""
    part = _standing(visited)
    if part["digest"] == digest:
        return Response(status_code=204)
    moved = [place for place in part["places"].split() if place not in places.split()]
    said = "; ".join(f"{name} has {number} ahead" for name, _, number in (place.partition(":") for place in moved))
    return rendered("queue_part", **part, caller=visited.caller, announcement=said if places else "")


def _standing(visited: Visit) -> dict[str, Any]:
    queue = standing(visited.shared, visited.caller)
    places = " ".join(f"{study.name}:{study.ahead}" for study in queue.studies if study.ahead is not None)
    shown = digest(queue)
    return {
        "queue": queue,
        "digest": shown,
        "places": places,
        "query": urlencode({"digest": shown, "places": places}),
        "ahead_words": ahead_words,
    }


def ahead_words(study: WaitingView) -> str:
    """Return what is ahead of a study in words: numbers, and no names of other owners."""
    if study.ahead is None:
        return "its place is not known yet"
    if not study.ahead:
        return "next in line"
    own, others = study.own_ahead or 0, study.ahead - (study.own_ahead or 0)
    parts = [f"{own} of the same owner" if own else "", f"{others} of others" if others else ""]
    return f"{study.ahead} ahead: {' and '.join(part for part in parts if part)}"
