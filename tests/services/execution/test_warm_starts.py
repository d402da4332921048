"""A study that begins with the best trials of an earlier one: what is read, recorded, skipped, refused and charged."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_blockout.data import dimensions
from services.execution.earlier_trials import of_home
from services.search.scheduler import Scheduler
from services.store import Store
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.searching.warm_starts import recalling
from services.trial_record import SEARCH, Trial

DOCUMENT: dict[str, Any] = {
    "schema_version": 2,
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 2},
    "budget": {"trainings": 6},
    "retrain": {"seeds": [0, 1]},
}
EARLIER = {"plain": {"space": ["training"]}, "wide": {"space": ["training", "branched"]}, "still": {}}


def resolved(name: str, arms: Mapping[str, Any], **changes: Any) -> Study:
    return resolve_document({**DOCUMENT, "name": name, "arms": arms, **changes}, source="x", measure=dimensions)


@pytest.fixture
def url(tmp_path: Path, pretend: Callable[..., None]) -> str:
    """The store of a home that has run the study ``earlier``."""
    place = f"sqlite:///{tmp_path / 'store.db'}"
    study = resolved("earlier", EARLIER)
    with Store.open(place) as store:
        store.create_study("earlier", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        pretend(store, study, max_concurrent_trials=1)
    return place


def ranked(url: str, arm: str | None = None) -> list[Trial]:
    with Store.open(url) as store:
        trials = store.trials("earlier", arm=arm, phase=SEARCH, state="complete")
    return sorted((trial for trial in trials if trial.values), key=lambda trial: -(trial.score or 0))


def warm(wanted: Mapping[str, Any], *, url: str, name: str = "later", **arm: Any) -> Study:
    with recalling(of_home(url)):
        return resolved(name, {"a": {"space": ["training"], "searcher": "tpe", **arm, "warm_start": dict(wanted)}})


def fault(wanted: Mapping[str, Any], *, url: str, **arm: Any) -> str:
    with pytest.raises(StudyError) as caught:
        warm(wanted, url=url, **arm)
    return str(caught.value)


def test_the_best_trials_are_recorded_and_tried_first_and_charged(url: str) -> None:
    study = warm({"study": "earlier", "arm": "plain", "best": 2}, url=url)
    best = ranked(url, "plain")[:2]
    assert best[0].score != best[1].score
    recorded = study.to_json()["arms"]["a"]["warm_start"]
    assert [each["trial"] for each in recorded["trials"]] == [trial.number for trial in best]
    assert [each["score"] for each in recorded["trials"]] == [trial.score for trial in best]
    again = parse_resolved(study.to_json())
    assert again.hash == study.hash
    scheduler, found = Scheduler(again, shape=(1, 8, 8), classes=10, images=50), []
    for _ in range(3):
        trial = scheduler.next()
        assert trial is not None
        scheduler.update(trial)
        found.append(trial)
        scheduler = Scheduler(again, shape=(1, 8, 8), classes=10, images=50, trials=[*found[:-1], ended(found[-1])])
        found[-1] = ended(found[-1])
    assert [dict(trial.values) for trial in found[:2]] == [dict(trial.values) for trial in best]
    assert [trial.params.get("enqueued", False) for trial in found] == [True, True, False]
    assert all(trial.planned > 0 for trial in found)  # points are trained again, under the budget of this study


def ended(trial: Trial) -> Trial:
    return replace(trial, state="complete", score=0.5, sample_passes=trial.planned, suggest_seconds=0.0)


def test_points_of_the_study_file_come_before_them_and_all_arms_are_ranked_together(url: str) -> None:
    point = {"optim.lr": 0.002, "optim.weight_decay": 0.001}
    study = warm(
        {"study": "earlier", "best": 3}, url=url, space=["training", "branched"], enqueue=[], name="later-of-all"
    )
    beginning = study.arms["a"].rules.beginning
    assert beginning is not None
    assert [(each.arm, each.trial) for each in beginning.trials] == [(t.arm, t.number) for t in ranked(url)[:3]]
    both = warm({"study": "earlier", "arm": "plain", "best": 1}, url=url, enqueue=[point])
    scheduler = Scheduler(both, shape=(1, 8, 8), classes=10, images=50)
    first = scheduler.next()
    assert first is not None
    assert dict(first.values) == point


def test_trials_outside_of_the_spaces_are_skipped_and_named(url: str) -> None:
    study = warm({"study": "earlier", "best": 100}, url=url)
    skipped = study.arms["a"].skipped((1, 8, 8), 10)
    wide, plain = ranked(url, "wide"), ranked(url, "plain")
    assert len(skipped) == len(wide) > 0
    assert f"trial {wide[0].number} of arm 'wide' of study 'earlier' is skipped" in skipped[0]
    assert "the spaces ask for no parameter" in skipped[0]
    scheduler = Scheduler(study, shape=(1, 8, 8), classes=10, images=50)
    first = scheduler.next()
    assert first is not None
    assert dict(first.values) == dict(plain[0].values)
    assert "warm_start: none of the" in fault({"study": "earlier", "arm": "wide"}, url=url)


def test_a_study_goes_on_with_what_it_began_with_whatever_has_become_of_the_earlier_one(
    url: str, pretend: Callable[..., None]
) -> None:
    wanted = {"study": "earlier", "arm": "plain", "best": 2}
    study = warm(wanted, url=url)
    with Store.open(url) as store:
        store.create_study("later", config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
        longer = resolved("earlier", EARLIER, budget={"trainings": 20})
        store.finish_study("earlier", "complete")
        store.reopen_study("earlier", reason="more", config=longer.to_json(), config_hash=longer.hash)
        pretend(store, longer, max_concurrent_trials=1)
    assert [each.number for each in ranked(url, "plain")[:2]] != [
        each["trial"] for each in study.to_json()["arms"]["a"]["warm_start"]["trials"]
    ]
    assert warm(wanted, url=url).hash == study.hash
    assert warm(wanted, url=url, name="another").hash != study.hash
    with Store.open(url) as store:
        store.finish_study("earlier", "complete")
        store.delete_study("earlier", grace_seconds=60, by="me")
    assert warm(wanted, url=url).hash == study.hash
    assert "there is no study 'earlier' here" in fault({**wanted, "best": 1}, url=url)


def test_what_cannot_be_begun_with_is_refused_with_its_key(url: str, tmp_path: Path) -> None:
    text = fault({"study": "earlyer"}, url=url)
    assert "arms.a.warm_start.study: there is no study 'earlyer' here; did you mean 'earlier'?" in text
    text = fault({"study": "earlier", "arm": "plian"}, url=url)
    assert "arms.a.warm_start.arm: study 'earlier' has no arm 'plian'; did you mean 'plain'?" in text
    assert "no search trial of arm 'still' of study 'earlier' is complete" in fault(
        {"study": "earlier", "arm": "still"}, url=url
    )
    assert "arms.a.warm_start.best: must be greater than or equal to 1" in fault({"study": "x", "best": 0}, url=url)
    assert "warm_start.study: this key is required" in fault({"best": 2}, url=url)
    assert "a grid tries every point anyway" in fault({"study": "earlier"}, url=url, searcher="grid")
    nowhere = tmp_path / "none.db"
    assert "there is no study yet" in fault({"study": "earlier"}, url=f"sqlite:///{nowhere}")
    assert not nowhere.exists()
    with pytest.raises(StudyError, match="earlier studies are not at hand here"):
        resolved("later", {"a": {"space": ["training"], "warm_start": {"study": "earlier"}}})
