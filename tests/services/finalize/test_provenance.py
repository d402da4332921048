"""What a card says of where a model comes from, of a study made by hand, and how good its probabilities are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.statistics.novelty import is_unlike
from services.analysis.compare import build
from services.finalize.provenance import probabilities, provenance
from tests.services.analysis.test_comparison import SEEDS, retrained, study_of, trials

ENVIRONMENT = {
    "nas_blockout": "1.2",
    "python": "3.11.9",
    "machine": "secret-host",
    "packages": {"torch": "2.9", "scipy": None},
    "commit": "c" * 40,
}


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(DataSettings("digits", train_samples=50))


def linear(scale: float) -> nn.Module:
    """A network of fixed logits, whose confidence grows with a number."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(scale * torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def test_data_search_rivals_and_software_are_those_of_the_study(digits: Splits, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    study = study_of()
    document = build(study, trials())
    found = provenance(
        study, retrained("blockout", 1, 0.933), digits, document, environment=tmp_path / "environment.json"
    )
    assert found.source.startswith("1,797 handwritten digits")
    assert (found.validation_images, found.split_seed, found.augmentation) == (len(digits.validation), 0, "none")
    assert (found.searcher, found.trials, found.budget) == ("random", 6, "28,800 sample passes")
    assert found.seeds == tuple(SEEDS)
    assert found.mean_accuracy == pytest.approx(0.931)
    assert found.interval is not None
    assert found.interval[0] < 0.931 < found.interval[1]
    assert {rival.name: rival.role for rival in found.rivals} == {
        "dense": "baseline",
        "dropout": "ablation",
        "placebo-nodes": "placebo",
        "widths": "ablation",
        "thin": "ablation",
    }
    assert found.environment == {"nas_blockout": "1.2", "Python": "3.11.9", "torch": "2.9"}
    assert found.commit == "c" * 40
    unknown = provenance(study, retrained("thin", 0, 0.9), digits, document, environment=tmp_path / "none.json")
    assert (unknown.environment, unknown.commit) == ({}, None)


def test_a_temperature_is_fitted_if_asked_and_reads_no_test_image(digits: Splits) -> None:
    found = probabilities(retrained("dense", 0, 0.9), linear(3.0), digits, calibrate=True)
    before, after = (found["calibration"]["validation"][when]["nll"]["value"] for when in ("before", "after"))
    assert found["temperature"] > 1
    assert after < before
    assert found["calibration"]["test"] is None
    assert digits.test_reads == 0
    assert "temperature" not in probabilities(retrained("dense", 0, 0.9), linear(3.0), digits, calibrate=False)


def test_what_the_one_evaluation_has_found_is_taken_over(digits: Splits) -> None:
    trial = retrained("dense", 0, 0.9)
    recorded: dict[str, Any] = {"temperature": 1.25, "validation": {}, "test": {"before": {}}}
    trial.outcome["calibration"] = recorded
    found = probabilities(trial, linear(1.0), digits, calibrate=True)
    assert (found["temperature"], found["calibration"]) == (1.25, recorded)


def test_at_most_one_in_a_hundred_of_the_pixels_that_the_model_sees_is_marked_and_noise_is(digits: Splits) -> None:
    model = linear(1.0)
    known = probabilities(retrained("dense", 0, 0.9), model, digits, calibrate=False)["novelty"]
    normalized = digits.validation.images
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (digits.preprocessing.mean, digits.preprocessing.std))
    pixels = normalized * std + mean
    with torch.no_grad():
        marked = is_unlike(model(normalized), pixels, known)
        noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        of_noise = is_unlike(model((noise - mean) / std), noise, known)
    assert known["images"] == len(digits.validation)
    assert float(marked.double().mean()) <= 0.01
    assert float(of_noise.double().mean()) > 0.9


def test_a_source_that_is_a_plug_in_is_told_in_its_own_words(digits: Splits, tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "docs" / "guides" / "examples" / "plugin" / "src" / "example_plugin"
    study = study_of()
    study = replace(study, data=DataSettings(f"{example / 'stripes.py'}:STRIPES"))
    document = build(study_of(), trials())
    found = provenance(study, retrained("blockout", 1, 0.933), digits, document, environment=tmp_path / "none")
    assert found.source == "gray stripes in four directions"
