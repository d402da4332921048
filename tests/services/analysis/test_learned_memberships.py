"""To which end the membership probabilities of an arm came, counted over seeds and told in one line everywhere."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from services.analysis.compare import build
from services.analysis.comparison import ComparisonDocument
from services.analysis.learned_structure import arm_memberships, arm_structure
from services.analysis.verdict import verdict_of
from services.cli.show import memberships_of
from services.trial_record import Trial
from tests.services.analysis.test_comparison import retrained, study_of, trials_of
from tests.services.program import Call, here, store_of

ENDS: list[Mapping[str, str]] = [
    {"features": "stayed", "hidden1": "diverged", "hidden2": "diverged"},
    {"features": "stayed", "hidden1": "diverged", "hidden2": "diverged"},
    {"features": "all ones", "hidden1": "diverged", "hidden2": "diverged"},
]
LINE = (
    "membership probabilities diverged in hidden1, hidden2 (3 of 3 seeds); stayed in features (2 of 3 seeds); "
    "went to 1 in features (1 of 3 seeds)"
)
PAPER = {"method": {"name": "blockout", "preset": "paper", "masked": "head"}}


def came(trial: Trial, ends: Mapping[str, str] | None) -> Trial:
    return replace(trial, result={**trial.outcome, "membership_ends": ends})


def learned(ends: Mapping[str, str] | None, *, seed: int = 0) -> Trial:
    return came(retrained("blockout", seed, 0.9), ends)


def test_ends_are_counted_by_layer_and_told_by_groups_of_layers() -> None:
    found = arm_memberships([learned(ends, seed=seed) for seed, ends in enumerate(ENDS)])
    assert found is not None
    assert found.seeds == 3
    assert found.layers == {
        "features": {"stayed": 2, "all ones": 1}, "hidden1": {"diverged": 3}, "hidden2": {"diverged": 3},
    }  # fmt: skip
    assert found.summary == LINE
    many = arm_memberships([learned({f"layer{n}": "diverged" if n else "stayed" for n in range(20)})])
    assert many is not None
    assert (
        many.summary
        == "membership probabilities stayed in layer0 (1 of 1 seed); diverged in 19 of 20 layers (1 of 1 seed)"
    )


def test_seeds_of_which_it_is_not_known_do_not_count() -> None:
    assert arm_memberships([learned(None)]) is None
    found = arm_memberships([learned(None), learned(ENDS[0], seed=1)])
    assert found is not None
    assert found.seeds == 1


@pytest.mark.parametrize("settings", [PAPER, {**PAPER, "distillation": {}}], ids=["folded", "distilled"])
def test_comparison_and_verdict_say_it_with_and_without_distillation(settings: dict[str, object]) -> None:
    study = study_of({"dense": {}, "blockout": settings}, seeds=[0, 1, 2])
    search, *models = trials_of("blockout", [0.91, 0.92, 0.93])
    given = [came(trial, ends) for trial, ends in zip(models, ENDS, strict=True)]
    document = build(study, [*trials_of("dense", [0.9, 0.9, 0.9]), search, *given])
    assert document.arms["dense"].memberships is None
    told = document.arms["blockout"].memberships
    assert told is not None
    assert told.summary == LINE
    assert f"blockout: {LINE}" in verdict_of(document).numbers
    assert ComparisonDocument.model_validate_json(document.model_dump_json()) == document


def test_a_comparison_from_before_it_was_recorded_is_read() -> None:
    study = study_of({"dense": {}, "blockout": PAPER}, seeds=[0, 1])
    made = build(study, [*trials_of("dense", [0.9, 0.9]), *trials_of("blockout", [0.91, 0.92])])
    old = made.model_dump(mode="json")
    for arm in old["arms"].values():
        del arm["memberships"]
    assert ComparisonDocument.model_validate(old) == made
    assert "membership" not in verdict_of(made).text


def test_a_collapse_is_told_once() -> None:
    ones = {"architecture": None, "gap": {}, "probabilities": {"hidden": [[1.0, 1.0]]}}
    structure = {"layers": [], "branches": [], "macs": None, "exclusive_macs": None, "exclusive_parameters": None}
    before = replace(
        learned(None), result={**ones, "structure": structure}, experiment={"method": {"name": "blockout"}}
    )
    old, new = (arm_structure([trial], trial, None) for trial in (before, came(before, {"hidden": "all ones"})))
    assert old is not None
    assert new is not None
    assert (old.collapsed, new.collapsed) == ({"hidden": {"all ones": 1}}, {})
    assert "collapsed" in old.summary
    assert "collapsed" not in new.summary
    folded = replace(before, result={**before.outcome, "gap": None})  # has P, too, but none of it became a branch
    plain = arm_structure([folded], folded, None)
    assert plain is not None
    assert (plain.learned, plain.summary) == (False, "no branches")


def test_a_stored_study_is_shown_with_it(tmp_path: Path) -> None:
    call: Call = partial(here, NAS_BLOCKOUT_HOME=str(tmp_path), COLUMNS="200")
    study = study_of({"blockout": PAPER}, seeds=[0, 1, 2])
    with store_of(tmp_path) as store:
        store.create_study("by-hand", config=study.to_json(), config_hash=study.hash, arms=["blockout"])
        store.claim_study("by-hand")
        for seed, ends in enumerate(ENDS):
            of_trial = {"phase": "retrain", "number": seed, "seed": seed, "planned": 9}
            row = store.add_trial("by-hand", arm="blockout", experiment={}, params={}, **of_trial)
            store.start_attempt(row.id)
            store.finish_trial(row.id, "complete", score=0.9, result=dict(learned(ends).outcome))
        assert memberships_of(store.trials("by-hand")) == {"blockout": LINE}
    assert f"blockout: {LINE}\n" in call("show", "by-hand").out
    assert call("show", "by-hand", "--json").json["memberships"] == {"blockout": LINE}
