"""How fast the caller's earlier studies trained: what the expected duration of a new one is reckoned from."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.api.administration.access import sees_command_line
from services.api.caches.token_cache import Caller
from services.api.state import Service
from services.store import StudyStatus
from services.study_config.resolved_study import Study

_MOST_STUDIES = 10  # the newest complete ones, whose usage is read


@dataclass(frozen=True, slots=True)
class Pace:
    """The measured pace of trainings like those of a study.

    Args:
        seconds_per_pass: Seconds per sample pass, by arm.
        studies: Names of the studies in which it was measured.
    """

    seconds_per_pass: Mapping[str, float]
    studies: tuple[str, ...]


def pace_of(shared: Service, caller: Caller, study: Study) -> Pace | None:
    """Return the pace of trainings with the data and backbone of each arm in the caller's own complete studies.

    None if there is none for one of the arms: a network of another size may take any time. Studies of other owners are
    not looked at.

    Args:
        shared: The service.
        caller: Whose studies to look at.
        study: The new study.
    """
    wanted = {name: _kind(study.to_json()["data"], arm.experiment.to_json()) for name, arm in study.arms.items()}
    seconds: dict[str, float] = {}
    passes: dict[str, int] = {}
    found: list[str] = []
    for status in _statuses(shared, caller):
        kinds = _kinds(status.row.document)
        useful = [spent for spent in status.spent if spent.sample_passes and kinds.get(spent.arm) in wanted.values()]
        for spent in useful:
            kind = kinds[spent.arm]
            seconds[kind] = seconds.get(kind, 0.0) + spent.seconds
            passes[kind] = passes.get(kind, 0) + spent.sample_passes
        if useful:
            found.append(status.row.study)
    if not all(kind in passes for kind in wanted.values()):
        return None
    return Pace({arm: seconds[kind] / passes[kind] for arm, kind in wanted.items()}, tuple(found))


def _statuses(shared: Service, caller: Caller) -> Iterable[StudyStatus]:
    store = shared.store
    own = [row.study for row in store.queue(("complete",), owner=caller.owner, limit=_MOST_STUDIES)]
    readings = [store.study_status(name) for name in own]
    if sees_command_line(shared, caller):
        rows = store.command_line_studies(limit=_MOST_STUDIES)
        readings += [store.command_line_status(row.study) for row in rows if row.state == "complete"]
    return [status for status in readings if status is not None]


def _kinds(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the kind of the trainings of each arm of a stored study; empty if this release cannot read it."""
    try:
        return {name: _kind(document["data"], arm["experiment"]) for name, arm in document["arms"].items()}
    except (AttributeError, KeyError, TypeError):
        return {}


def _kind(data: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    """Return what trainings of about the same pace have in common: data set, backbone, method."""
    method = experiment.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    return json.dumps([data.get("name"), experiment.get("backbone"), name], sort_keys=True, default=str)
