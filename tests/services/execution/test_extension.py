"""A study is extended without redoing what stands and ends as the larger one would have; other changes are refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nas_blockout.training import TrainingSettings, sample_passes
from services.analysis.compare import build
from services.budget.accounting import current, stale
from services.execution.extension import additions, enter
from services.files.study_dir import Folder, write_json
from services.finalize.winners import exported_trials
from services.store import Store, StudyBusy, StudyConflict
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial
from tests.services.new_store import new_store

IMAGES = 50
ONE = sample_passes(TrainingSettings(2), IMAGES)
DOCUMENT: dict[str, Any] = {
    "schema_version": 2,
    "name": "grows",
    "data": {"name": "digits", "train_samples": IMAGES},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
    "training": {"epochs": 2},
    "budget": {"sample_passes": 5 * ONE},
    "retrain": {"seeds": [0, 1]},
    "arms": {
        "random": {"space": ["training", "branched"]},
        "tpe": {"space": ["training"], "searcher": "tpe"},
        "thin": {"space": ["training"], "match": {"arm": "random"}},
    },
}
LARGER = {"budget": {"sample_passes": 14 * ONE}, "retrain": {"seeds": [0, 1, 2]}}


def study(**changes: Any) -> Study:
    return resolve_document({**DOCUMENT, **changes}, source="x")


@pytest.fixture
def home(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "runs" / "grows")


def go_on(asked: Study, store: Store, folder: Folder, pretend: Any) -> tuple[Trial, ...]:
    """Run a study as `run` does, with made-up results."""
    ran, row = enter(asked, store, folder)
    if row.state != "complete":
        store.claim_study(asked.name)
        pretend(store, ran, max_concurrent_trials=1)
        rows = store.trials(asked.name)
        write_json(folder.comparison, build(ran, rows).model_dump(mode="json"))
        store.finish_study(asked.name, "complete")
    return store.trials(asked.name)


def test_an_extended_study_ends_as_the_larger_one_would_have(store: Store, home: Folder, pretend: Any) -> None:
    first = go_on(study(), store, home, pretend)
    extended = go_on(study(**LARGER), store, home, pretend)
    assert extended[: len(first)] == first
    straight_study = study(name="straight", **LARGER)
    store.create_study("straight", config=straight_study.to_json(), config_hash="x", arms=list(straight_study.arms))
    pretend(store, straight_study, max_concurrent_trials=1)
    straight = store.trials("straight")
    for arm in ("random", "tpe"):
        mine, theirs = ([t for t in rows if (t.arm, t.phase) == (arm, "search")] for rows in (extended, straight))
        assert [t.experiment for t in mine] == [t.experiment for t in theirs]
        assert len(mine) == 11
        kept, other = (
            [t for t in current(rows) if (t.arm, t.phase) == (arm, "retrain")] for rows in (extended, straight)
        )
        assert sorted(t.seed for t in kept) == sorted(t.seed for t in other) == [0, 1, 2]
    assert json.loads(home.comparison.read_text())["budget"]["per_arm"] == 14 * ONE


def test_a_new_winner_is_retrained_anew_and_an_old_one_only_with_the_new_seeds(
    store: Store, home: Folder, pretend: Any
) -> None:
    first = go_on(study(), store, home, pretend)
    rows = go_on(study(**LARGER), store, home, pretend)
    winners = {}
    for arm in ("random", "tpe", "thin"):
        searched = [t for t in rows if (t.arm, t.phase, t.state) == (arm, "search", "complete")]
        winners[arm] = max(searched, key=lambda t: (t.score or 0.0, -t.number))
    changed = {arm for arm, winner in winners.items() if winner.id not in {t.id for t in first}}
    gone = stale(rows)
    assert {t.arm for t in gone} >= changed
    assert changed, "the made-up results must change a winner"
    for t in current(rows):
        if t.phase == "retrain":
            winner = winners[t.arm].experiment
            assert t.experiment["training"] == winner["training"]
            assert t.experiment["architecture"] == winner["architecture"]
    models = exported_trials(study(**LARGER), rows)
    assert {t.id for t in models.values()}.isdisjoint({t.id for t in gone})


def test_what_superseded_retrainings_cost_is_shown_and_not_held_against_their_arm(
    store: Store, home: Folder, pretend: Any
) -> None:
    go_on(study(), store, home, pretend)
    larger = study(**LARGER)
    rows = go_on(larger, store, home, pretend)
    document = build(larger, rows, extensions=len(home.earlier_comparisons()))
    assert document.extensions == 1
    total = sum(arm.cost.stale.sample_passes for arm in document.arms.values())
    assert total == sum(row.sample_passes for row in stale(rows)) > 0
    for arm in document.arms.values():
        assert arm.cost.retrain.sample_passes == 3 * ONE
        assert arm.test_accuracy is not None
        assert len(arm.test_accuracy.per_seed) == 3
    assert "spending" not in (document.reason or "")


def test_more_arms_are_added_and_the_old_comparison_is_kept(store: Store, home: Folder, pretend: Any) -> None:
    first = go_on(study(), store, home, pretend)
    before = home.comparison.read_text()
    arms = {"new": {"method": {"name": "dropout"}}, **DOCUMENT["arms"]}
    rows = go_on(study(arms=arms), store, home, pretend)
    assert rows[: len(first)] == first
    assert {t.arm for t in rows[len(first) :]} == {"new"}
    assert store.study("grows").arms == ("random", "tpe", "thin", "new")
    assert [path.name for path in home.earlier_comparisons()] == ["comparison.1.json"]
    assert home.earlier_comparisons()[0].read_text() == before
    assert "new" in json.loads(home.comparison.read_text())["arms"]


def test_a_study_is_found_by_what_it_was_before_it_was_extended(store: Store, home: Folder, pretend: Any) -> None:
    go_on(study(), store, home, pretend)
    rows = go_on(study(**LARGER), store, home, pretend)
    found, row = enter(study(workers={"max_concurrent_trials": 7}), store, home)
    assert row.state == "complete"
    assert found.config.budget.sample_passes == 14 * ONE
    assert found.config.workers.max_concurrent_trials == 7
    assert store.trials("grows") == rows


def test_nothing_happens_where_nothing_is_added(store: Store, home: Folder, pretend: Any) -> None:
    go_on(study(), store, home, pretend)
    _, row = enter(study(workers={"max_concurrent_trials": 7}, question="Why?"), store, home)
    assert row.state == "complete"
    assert home.earlier_comparisons() == []


def test_an_unfinished_study_is_extended_unless_another_driver_runs_it(
    store: Store, home: Folder, pretend: Any
) -> None:
    enter(study(), store, home)
    store.claim_study("grows", "elsewhere:1")
    with pytest.raises(StudyBusy):
        enter(study(**LARGER), store, home)
    store.release_study("grows", "elsewhere:1")
    rows = go_on(study(**LARGER), store, home, pretend)
    assert len([t for t in rows if (t.arm, t.phase) == ("tpe", "search")]) == 11
    assert home.earlier_comparisons() == []


def test_a_study_that_was_cancelled_goes_on(store: Store, home: Folder, pretend: Any) -> None:
    enter(study(), store, home)
    store.finish_study("grows", "cancelled")
    assert len(go_on(study(), store, home, pretend)) == 15


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "another seed: 0 there, 1 here"),
        ({"data": {"name": "digits", "train_samples": 60}}, "another data.train_samples: 50 there, 60 here"),
        ({"budget": {"sample_passes": 4 * ONE}}, f"another budget.sample_passes: {5 * ONE} there, {4 * ONE} here"),
        ({"budget": {"sample_passes": 5 * ONE, "seconds": 60}}, "another budget.seconds: null there, 60.0 here"),
        ({"budget": {"sample_passes": 5 * ONE, "tolerance": 0.1}}, "another budget.tolerance: 0.02 there, 0.1 here"),
        ({"retrain": {"seeds": [0, 2, 3]}}, "another retrain.seeds: [0, 1] there, [0, 2, 3] here"),
        ({"arms": {"random": DOCUMENT["arms"]["random"]}}, 'another arms.tpe: "an arm" there, null here'),
        ({"training": {"epochs": 4}}, "another arms.random.experiment.training.epochs: 2 there, 4 here"),
        ({"arms": {**DOCUMENT["arms"], "tpe": {"space": ["training"]}}}, 'another arms.tpe.searcher: "tpe" there'),
    ],
)
def test_what_does_not_only_add_is_refused_and_its_key_named(
    tmp_path: Path, home: Folder, pretend: Any, changes: dict[str, Any], said: str
) -> None:
    with new_store(tmp_path / "store.db") as store:
        rows = go_on(study(), store, home, pretend)
        with pytest.raises(StudyConflict) as infeasible:
            enter(study(**changes), store, home)
        assert said in str(infeasible.value)
        assert "only a larger budget, more seeds, further arms" in str(infeasible.value)
        assert store.trials("grows") == rows
        assert store.study("grows").state == "complete"
    assert home.comparison.exists()


def test_seeds_of_folds_are_only_added_at_the_end(store: Store, home: Folder, pretend: Any) -> None:
    folded = {"data": {**DOCUMENT["data"], "folds": 4}}
    go_on(study(**folded), store, home, pretend)
    with pytest.raises(StudyConflict, match=r"another retrain.seeds: \[0, 1\] there, \[2, 0, 1\] here"):
        enter(study(**folded, retrain={"seeds": [2, 0, 1]}, budget=LARGER["budget"]), store, home)
    enter(study(**folded, retrain={"seeds": [0, 1, 2]}, budget=LARGER["budget"]), store, home)


def test_a_factory_or_weights_that_have_changed_are_refused(store: Store, home: Folder, tmp_path: Path) -> None:
    code, weights = tmp_path / "net.py", tmp_path / "weights.safetensors"
    code.write_text("from torch import nn\n\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    own = {"name": "module", "factory": f"{code}:net"}
    save_file({"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}, weights)
    loaded = {"backbone": {**own, "weights": str(weights)}}

    def asked(**changes: Any) -> Study:
        return study(**{"backbone": own, "arms": {"a": {}}, **changes})

    enter(asked(), store, home)
    recorded = store.events("grows")[0].detail["files"]
    assert recorded == {str(code): hashlib.sha256(code.read_bytes()).hexdigest()}
    assert enter(asked(), store, home)[1].state == "created", "it is resumed with the same file"
    store.finish_study("grows", "cancelled")
    enter(asked(arms={"a": {}, "b": loaded}), store, home)
    assert set(store.events("grows")[-1].detail["files"]) == {str(code), str(weights)}
    for file in (code, weights):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        with pytest.raises(StudyConflict, match=rf"another content of {file} .* made with that; restore"):
            enter(asked(arms={"a": {}, "b": loaded}), store, home)
        file.write_bytes(before)
    enter(asked(arms={"a": {}, "b": loaded}), store, home)


def test_additions_are_said_in_words() -> None:
    arms = {**DOCUMENT["arms"], "new": {}}
    assert additions(study(), study(**LARGER, arms=arms)) == [
        f"budget.sample_passes from {5 * ONE} to {14 * ONE}",
        "seeds 2",
        "arm new",
    ]
    assert additions(study(export=["tpe"]), study()) == ["export of random, thin"]
    unlimited = study(budget={"trainings": 9})
    assert additions(study(budget={"trainings": 9, "seconds": 5}), unlimited) == ["budget.seconds from 5.0 to no limit"]


def test_each_comparison_is_kept_under_its_number(home: Folder) -> None:
    assert home.archive_comparison() is None
    for number in range(11):
        write_json(home.comparison, number)
        home.archive_comparison()
    assert [json.loads(path.read_text()) for path in home.earlier_comparisons()] == list(range(11))
