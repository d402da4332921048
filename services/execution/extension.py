"""Extending a study: the changes that keep all finished trials valid, and how the store records them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from services.budget.limits import UNITS
from services.files.network_files import files_of, require_same_files
from services.files.study_dir import Folder
from services.store import NotFound, Store, StudyConflict, StudyRow
from services.store.records import ENDED_STUDY
from services.study_config.resolved_study import Study, parse_resolved

_FREE = frozenset({"workers", "question"})  # may change at any time and require no further work
_RULE = "only a larger budget, more seeds, further arms, workers, question and export may change"
_MOST_CHARACTERS = 60


def enter(study: Study, store: Store, folder: Folder) -> tuple[Study, StudyRow]:
    """Create a study in the store, or find it there and extend it if it has changed; return the study to run.

    A study file from before an extension can still be run: it continues the study in its extended form.

    Args:
        study: The study.
        store: The store.
        folder: Folder of the study; an extension archives the comparison in it.

    Raises:
        StudyConflict: A study of that name exists, and the changes are not an extension, or the file of a factory or of
            weights has changed; the message names the key or the file.
        StudyBusy: Another driver runs the study.
    """
    arms = list(study.arms)
    files = files_of(study)
    try:
        row = store.study(study.name)
    except NotFound:
        config = study.to_json()
        return study, store.create_study(study.name, config=config, config_hash=study.hash, arms=arms, files=files)
    require_same_files(store, study.name, files)
    if row.config_hash == study.hash and row.state not in ENDED_STUDY:  # interrupted: it is resumed
        return study, row
    before = parse_resolved(row.config)
    # The events contain the hash of every earlier version of the study. Such a version asks for nothing new, but its
    # `workers`, which are no part of the hash, may differ and apply to this run.
    if any(event.detail.get("config_hash") == study.hash for event in store.events(study.name)):
        workers = {"workers": study.config.workers}
        return replace(before, config=before.config.model_copy(update=workers)), row
    changes = additions(before, study)
    if not changes and row.state in ENDED_STUDY - {"complete"}:
        return study, store.reopen_study(study.name, reason=f"it is run again after it was {row.state}")
    if not changes:
        return study, row
    if row.state not in ENDED_STUDY:
        store.claim_study(study.name)  # raises StudyBusy if a driver still runs it
        store.finish_study(study.name, "cancelled", error="it is extended before it has ended")
    # Archived before the store changes: after an interruption here, the next run finds the same changes again.
    folder.archive_comparison()
    return study, store.reopen_study(
        study.name,
        reason="; ".join(changes),
        config=study.to_json(),
        config_hash=study.hash,
        arms=[*row.arms, *(arm for arm in study.arms if arm not in row.arms)],
        files=files,
    )


def additions(before: Study, after: Study) -> list[str]:
    """Return what a study adds to its earlier version, as text; an empty list if there is no further work.

    Raises:
        StudyConflict: A change is not an extension; the message names its key.
    """
    old, new = before.to_json(), after.to_json()
    extensible = frozenset({"budget", "retrain", "arms", "export", "plugins"})
    for key in sorted((old.keys() | new.keys()) - extensible - _FREE):
        _require_same(key, old.get(key), new.get(key), after.name)
    _require_same_plugins(old.get("plugins", {}), new.get("plugins", {}), after.name)
    return [*_budget(old, new), *_seeds(old, new), *_arms(old, new), *_export(old, new)]


def _require_same_plugins(old: Mapping[str, Any], new: Mapping[str, Any], study: str) -> None:
    """Refuse another version of a plug-in, whose trials would be others; further arms may use further plug-ins."""
    for kind, before in old.items():
        for name, record in before.items():
            if (after := new.get(kind, {}).get(name)) is not None:  # else its arm is missing, which is told by itself
                _require_same(f"plugins.{kind}.{name}", record, after, study)


def _budget(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    _require_same("budget.tolerance", old["budget"]["tolerance"], new["budget"]["tolerance"], new["name"])
    for unit in UNITS:
        before, after = old["budget"].get(unit), new["budget"].get(unit)  # None is no limit, the largest budget
        if before == after:
            continue
        if before is None or (after is not None and after < before):
            _refuse(f"budget.{unit}", before, after, new["name"])
        yield f"budget.{unit} from {before} to {after if after is not None else 'no limit'}"


def _seeds(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = old["retrain"]["seeds"], new["retrain"]["seeds"]
    if not set(before) <= set(after):
        _refuse("retrain.seeds", before, after, new["name"])
    if new["data"].get("folds") is not None and before != after[: len(before)]:  # the position of a seed is its fold
        _refuse("retrain.seeds", before, after, new["name"])
    if more := [seed for seed in after if seed not in before]:
        yield f"seeds {', '.join(map(str, more))}"


def _arms(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for arm, before in old["arms"].items():
        after = new["arms"].get(arm)
        if after is None:
            _refuse(f"arms.{arm}", "an arm", None, new["name"])
        for key in before:
            if key != "description":  # decides no result
                _require_same(f"arms.{arm}.{key}", before[key], after.get(key), new["name"])
    yield from (f"arm {arm}" for arm in new["arms"] if arm not in old["arms"])


def _export(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    # None exports all arms. A new arm is further work by itself, so only arms of the earlier version count here.
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
        "to run it as a different study, change its name"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
