"""The best trials of an earlier study in the store, for the warm start of another one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_blockout.serialization import near
from nas_blockout.settings_fields import Conflict
from services.store import NotFound, Store
from services.study_config.searching.warm_starts import Beginning, Recall, Recalled, WarmStart
from services.trial_record import SEARCH

_MOST_NAMED = 1000


def of_home(store_url: str) -> Recall:
    """Return what reads earlier studies of a home; its store is opened only if a study asks for one.

    Args:
        store_url: URL of the store. It is not created here.
    """

    def recall(study: str, arm: str, wanted: WarmStart) -> Sequence[Recalled]:
        path = store_url.removeprefix("sqlite:///")
        if path != store_url and not Path(path).exists():
            raise _unknown(wanted.study, ())
        with Store.open(store_url) as store:
            known = [each.name for each in store.studies(limit=_MOST_NAMED)]
            own = store.study(study).config if store.has_study(study) else None
            return recalled(
                store,
                wanted,
                own=own,
                arm=arm,
                may_read=lambda name: name in known or _is_kept(store, name),
                known=known,
            )

    return recall


def recalled(
    store: Store,
    wanted: WarmStart,
    *,
    own: Mapping[str, Any] | None,
    arm: str,
    may_read: Callable[[str], bool],
    known: Iterable[str],
) -> Sequence[Recalled]:
    """Return the best complete search trials of an earlier study, or those that were recorded when a study began.

    Args:
        store: Holds the studies.
        wanted: What the study file says.
        own: The study that is resolved, as it was begun; None for a new one. Its trials are those that it began with,
            whatever has become of the earlier study.
        arm: Name of the arm that begins with them.
        may_read: Whether there is an earlier study of a name that may be read.
        known: Names of such studies, for errors.

    Returns:
        The trials, the best one first, of equal points the first only; of equal scores the earlier one is first.

    Raises:
        Conflict: There is no such study, no such arm, or no complete search trial.
    """
    recorded = ((own or {}).get("arms", {}).get(arm) or {}).get("warm_start")
    if recorded is not None and (begun := Beginning.from_json(recorded)).wanted == wanted:
        return begun.trials
    if not may_read(wanted.study):
        raise _unknown(wanted.study, known)
    try:
        row = store.study(wanted.study)
    except NotFound:  # it waits in the queue
        raise _without_trials(wanted) from None
    if wanted.arm is not None and wanted.arm not in row.arms:
        message = f"warm_start.arm: study {wanted.study!r} has no arm {wanted.arm!r}; {near(wanted.arm, row.arms)}"
        raise Conflict(message, "warm_start.arm", "warm_start.study")
    trials = store.trials(wanted.study, arm=wanted.arm, phase=SEARCH, state="complete", experiments=False)
    order = {name: place for place, name in enumerate(row.arms)}
    best = sorted(
        (trial for trial in trials if trial.score is not None and trial.values),
        key=lambda trial: (-(trial.score or 0.0), order.get(trial.arm, len(order)), trial.number),
    )
    distinct: dict[str, Recalled] = {}
    for trial in best:
        found = Recalled(trial.arm, trial.number, float(trial.score or 0.0), dict(trial.values))
        distinct.setdefault(repr(sorted(trial.values.items())), found)
    if not distinct:
        raise _without_trials(wanted)
    return list(distinct.values())[: wanted.best]


def _is_kept(store: Store, name: str) -> bool:
    """Whether there is a study of a name that is not deleted."""
    return store.has_study(name) and all(each.study != name for each in store.deleted_studies())


def _unknown(study: str, known: Iterable[str]) -> Conflict:
    names = sorted(known)
    remedy = near(study, names) if names else "there is no study yet"
    return Conflict(f"warm_start.study: there is no study {study!r} here; {remedy}", "warm_start.study")


def _without_trials(wanted: WarmStart) -> Conflict:
    of_arm = "" if wanted.arm is None else f" of arm {wanted.arm!r}"
    message = f"warm_start.study: no search trial{of_arm} of study {wanted.study!r} is complete and has parameters"
    return Conflict(f"{message}; wait until one is", "warm_start.study", "warm_start.arm")
