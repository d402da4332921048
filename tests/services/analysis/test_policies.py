"""Studies of BlockDrop: which arm is the learned one, what it is held against, and what is said of its paths."""

from dataclasses import replace
from typing import Any

import pytest

from services.analysis.compare import build, family, role
from services.analysis.comparison import ComparisonDocument, asked
from services.analysis.verdict import verdict_of
from services.study_config.resolved_study import Study
from services.trial_record import Trial
from tests.services.analysis.test_comparison import study_of, trials_of

BLOCKDROP: dict[str, Any] = {
    "full": {"method": {"name": "blockdrop", "policy": "all"}},
    "learned": {"method": {"name": "blockdrop"}},
    **{
        policy: {"method": {"name": "blockdrop", "policy": policy}, "match": {"arm": "learned"}}
        for policy in ("static", "first", "random", "spread")
    },
    "thin": {"extends": "full", "match": {"arm": "learned"}},
}


def blockdrop_study() -> Study:
    resnet = {"backbone": {"name": "resnet", "depth": 14}}
    return study_of({name: {**resnet, **arm} for name, arm in BLOCKDROP.items()}, seeds=[0, 1, 2])


def test_a_policy_that_reads_the_image_is_the_learned_arm_and_fixed_paths_are_its_controls() -> None:
    study = blockdrop_study()
    assert {name: role(arm) for name, arm in study.arms.items()} == {
        "full": "baseline",
        "learned": "learned",
        "static": "ablation",
        "first": "ablation",
        "random": "placebo",
        "spread": "ablation",
        "thin": "ablation",
    }
    assert family(study)[:6] == [("learned", name) for name in study.arms if name != "learned"]


@pytest.mark.parametrize(
    ("mean", "answer", "headline"),
    [
        (
            0.91,
            "yes",
            "Yes, a policy that reads the image helps: learned is better than every placebo and ablation "
            "(static, first, random, spread, thin)",
        ),
        (
            0.895,
            "no",
            "No, a policy that reads the image does not help: learned is worse than static by 0.50 points, "
            "first by 0.50 points, random by 0.50 points, spread by 0.50 points and thin by 0.50 points",
        ),
    ],
)
def test_a_study_of_blockdrop_answers_whether_reading_the_image_helps(mean: float, answer: str, headline: str) -> None:
    study = blockdrop_study()
    offsets = {name: 1e-5 * number for number, name in enumerate(study.arms)}  # no two differences are the same
    every = [
        replace(trial, experiment=arm.experiment.to_json())
        for name, arm in study.arms.items()
        for trial in trials_of(
            name, [(mean if name == "learned" else 0.9) + step * (1e-4 + offsets[name]) for step in (-1, 0, 1)]
        )
    ]
    document = build(study, every)
    found = verdict_of(document)
    assert (found.answer, found.headline) == (answer, headline)
    assert {pair.a for pair in asked(document)[:6]} == {"learned"}
    assert document.arms["learned"].seeds_cover == "learning and retraining"
    assert document.arms["first"].seeds_cover == "retraining"


def with_blocks(trial: Trial, paths: list[list[int]]) -> Trial:
    """The trial with what its model did on as many test images as there are paths."""
    recorded = {"paths": paths, "path_of": list(range(len(paths))), "policy": 10, "fixed": 10, "blocks": [10] * 3}
    return replace(trial, result={**trial.result, "blocks": recorded}) if trial.is_model else trial


@pytest.mark.parametrize("paths", [[[1, 0, 1]], [[1, 0, 1], [1, 1, 1]]])
def test_how_many_paths_a_policy_took_is_said_and_in_the_first_line_if_it_is_one(paths: list[list[int]]) -> None:
    study = blockdrop_study()
    every = [
        with_blocks(replace(trial, experiment=arm.experiment.to_json()), paths if name == "learned" else paths[:1])
        for name, arm in study.arms.items()
        for trial in trials_of(name, [0.9, 0.91, 0.92])
    ]
    document = build(study, every)
    assert ComparisonDocument.model_validate(document.model_dump(mode="json")) == document
    found = verdict_of(document)
    assert found.headline.endswith("and learned takes one path for all images (3 of 3 seeds)") == (len(paths) == 1)
    kept, taken = ("2.00", "1, 1 and 1") if len(paths) == 1 else ("2.50", "2, 2 and 2")
    assert f"learned keeps {kept} of 3 blocks on average, on {taken} distinct paths" in found.numbers
    assert not any(text.startswith("first keeps") for text in found.numbers)
