"""Extending a study: which changes only add to what is in the store, so that no finished trial has to be redone."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.budget.limits import UNITS
from services.files.study_dir import Folder
from services.store import NotFound, Store, StudyConflict, StudyRow
from services.store.records import ENDED_STUDY
from services.study_config.resolved_study import Study, parse_resolved

_FREE = frozenset({"workers", "question"})  # may change at any time and require no further work
_RULE = "only a larger budget, more seeds, further arms, workers, question and export may change"
_MOST_CHARACTERS = 60


def enter(study: Study, store: Store, folder: Folder) -> tuple[Study, StudyRow]:
    """Create a study in the store, or find and perhaps extend the one that is there; return it as it is to be run.

    The study file from before an extension still finds the study, which then goes on as extended.

    Args:
        study: The study to run.
        store: Where studies are kept.
        folder: Of the study; an extension archives its comparison there.

    Raises:
        StudyConflict: A study of that name exists, and the changes do not only add to it; the message names the key.
        StudyBusy: Another driver runs it.
    """
    arms = list(study.arms)
    try:
        row = store.study(study.name)
    except NotFound:
        return study, store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=arms)
    if row.config_hash == study.hash and row.state not in ENDED_STUDY:
        return study, row
    before = parse_resolved(row.config)
    # The events hold the hash of every version of the study: this is an earlier one, and asks for nothing new.
    if any(event.detail.get("config_hash") == study.hash for event in store.events(study.name)):
        workers = {"workers": study.config.workers}
        return Study(before.config.model_copy(update=workers), before.arms, before.data), row
    changes = additions(before, study)
    if not changes and row.state in ENDED_STUDY - {"complete"}:
        return study, store.reopen_study(study.name, reason=f"it is run again after it was {row.state}")
    if not changes:
        return study, row
    if row.state not in ENDED_STUDY:
        store.claim_study(study.name)
        store.finish_study(study.name, "cancelled", error="it is extended before it has ended")
    folder.archive_comparison()
    return study, store.reopen_study(
        study.name,
        reason="; ".join(changes),
        config=study.to_json(),
        config_hash=study.hash,
        arms=[*row.arms, *(arm for arm in study.arms if arm not in row.arms)],
    )


def additions(before: Study, after: Study) -> list[str]:
    """Return what a study adds to its earlier version, as text; nothing if there is no further work.

    Raises:
        StudyConflict: A change does not only add; the message names its key.
    """
    old, new = before.to_json(), after.to_json()
    parts = frozenset({"budget", "retrain", "arms", "export"})
    for key in sorted((old.keys() | new.keys()) - parts - _FREE):
        _require_same(key, old.get(key), new.get(key), after.name)
    return [*_budget(old, new), *_seeds(old, new), *_arms(old, new), *_export(old, new)]


def _budget(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = old["budget"], new["budget"]
    _require_same("budget.tolerance", before["tolerance"], after["tolerance"], new["name"])
    for unit in UNITS:
        was, now = before.get(unit), after.get(unit)
        if was == now:
            continue
        if was is None or (now is not None and now < was):
            _refuse(f"budget.{unit}", was, now, new["name"])
        yield f"budget.{unit} from {was} to {now if now is not None else 'no limit'}"


def _seeds(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = old["retrain"]["seeds"], new["retrain"]["seeds"]
    if not set(before) <= set(after):
        _refuse("retrain.seeds", before, after, new["name"])
    if more := [seed for seed in after if seed not in before]:
        yield f"seeds {', '.join(map(str, more))}"


def _arms(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for arm, before in old["arms"].items():
        after = new["arms"].get(arm)
        if after is None:
            _refuse(f"arms.{arm}", "an arm", None, new["name"])
        for key in before:
            if key != "description":
                _require_same(f"arms.{arm}.{key}", before[key], after.get(key), new["name"])
    yield from (f"arm {arm}" for arm in new["arms"] if arm not in old["arms"])


def _export(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before = old["export"] if old["export"] is not None else list(old["arms"])
    after = new["export"] if new["export"] is not None else list(new["arms"])
    if more := [arm for arm in after if arm not in before and arm in old["arms"]]:
        yield f"export of {', '.join(more)}"


def _require_same(key: str, before: Any, after: Any, study: str) -> None:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for inner in sorted(before.keys() | after.keys()):
            _require_same(f"{key}.{inner}", before.get(inner), after.get(inner), study)
        return
    _refuse(key, before, after, study)


def _refuse(key: str, before: Any, after: Any, study: str) -> None:
    raise StudyConflict(
        f"study {study!r} is in the store with another {key}: {_short(before)} there, {_short(after)} here; {_RULE}; "
        "give a different study another name"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
