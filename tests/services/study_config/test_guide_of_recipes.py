"""The guide of training recipes: every example is a study that trains, and every recipe has its row."""

import re
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.data.data_settings import COMBINED
from nas_blockout.experiment import Run
from nas_blockout.training import TrainingSettings
from services.renamed_keys import _ADDED
from services.study_config.errors import StudyError
from services.study_config.resolution import resolve_document
from tests.services.tiny import TINY

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "training-recipes.md").read_text()
ROWS = re.findall(r"^\| `((?:training|data): \{.*?\})` \|", GUIDE, re.MULTILINE)
ELSEWHERE = {"precision", "compile", "memory_format", "loss", "loss_options"}  # of other guides, the last of plug-ins
RECIPES = {key for key in _ADDED["training"] if key in {item.name for item in fields(TrainingSettings)}} - ELSEWHERE


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(train_samples=50))


def study(example: str) -> dict[str, Any]:
    document = yaml.safe_load(example)
    changed = {section: {**TINY.get(section, {}), **values} for section, values in document.items()}
    return {**TINY, "budget": {"trainings": 4}, "arms": {"dense": {}}, **changed}


def first_block() -> str:
    return GUIDE.split("```yaml\n")[1].split("```")[0]


@pytest.mark.parametrize("example", [*ROWS, pytest.param(first_block(), id="together")])
def test_an_example_trains_with_what_it_says(example: str, splits: Splits) -> None:
    document = study(example)
    document["training"]["epochs"] = 2
    experiment = resolve_document(document, source="guide").arms["dense"].experiment
    said = {section: values for section, values in yaml.safe_load(example).items() if section != "schema_version"}
    found = experiment.to_json()
    for section, values in said.items():
        kept = {key: value for key, value in values.items() if key != "epochs"}
        assert {key: found[section][key] for key in kept} == kept
    run = Run(experiment, splits)
    assert len(list(run)) == 2
    assert run.outcome is not None


def test_every_recipe_has_its_row() -> None:
    shown = {key for example in ROWS for key in yaml.safe_load(example).get("training", {})}
    assert shown >= RECIPES
    parts = "-".join(yaml.safe_load(example)["data"]["augment"] for example in ROWS if example.startswith("data"))
    ours = {"randaugment", "trivialaugment", "random-erasing"}
    assert ours < set(chain.from_iterable(COMBINED))
    assert all(part in parts for part in ours)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"label_smooting": 0.1}}, "did you mean 'label_smoothing'?"),
        ({"training": {"schedule": "one_cycle"}}, "did you mean 'one-cycle'?"),
        ({"training": {"ema": 1.0}}, "training.ema: must be less than 1"),
        ({"data": {"augment": "trivial-augment"}}, "did you mean 'trivialaugment'?"),
        ({"training": {"class_weights": "balanced", "sampling": "balanced"}}, "corrects the imbalance twice; keep one"),
        (
            {
                "training": {"mixup": 0.2},
                "backbone": {"name": "resnet", "depth": 8},
                "arms": {"dense": {"method": {"name": "blockdrop"}}},
            },
            "training.mixup: must be 0 where a policy of blockdrop learns, which scores by the one right class",
        ),
    ],
)
def test_a_mistake_is_told_with_its_remedy(change: dict[str, Any], said: str) -> None:
    document = {**TINY, "arms": {"dense": {}}, **change}
    document |= {key: {**TINY[key], **change[key]} for key in ("training", "data") if key in change}
    with pytest.raises(StudyError) as caught:
        resolve_document(document, source="study")
    assert said in str(caught.value)
