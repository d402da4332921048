"""Probabilities of an exported model: divided by its temperature, and a mark on images that are unlike others."""

from pathlib import Path

import pytest
import torch

from nas_blockout.export import ExportedModel
from nas_blockout.statistics.novelty import energy
from tests.nas_blockout.export.examples import PROBABILITIES, images


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_the_temperature_changes_probabilities_and_no_order(exported: Path, form) -> None:
    model = ExportedModel.open(exported / "dense")
    logits = model.logits(images(16), form=form)
    found = model.predict(images(16), form=form)
    assert found.calibrated
    assert torch.allclose(found.probabilities, torch.softmax(logits / PROBABILITIES["temperature"], 1))
    assert not torch.allclose(found.probabilities, logits.softmax(1))
    assert torch.equal(found.probabilities.argsort(1), logits.argsort(1))


def test_images_of_lower_energy_than_the_threshold_are_marked(exported: Path) -> None:
    model = ExportedModel.open(exported / "dense")
    found = model.predict(images(64))
    expected = energy(model.logits(images(64))) < PROBABILITIES["novelty"]["energy"]
    assert 0 < int(expected.sum()) < 64
    assert found.unlike is not None
    assert torch.equal(found.unlike, expected)
    assert found.quantile == 0.01


def test_a_model_without_either_gives_the_softmax_and_no_mark(exported: Path) -> None:
    model = ExportedModel.open(exported / "branched")
    found = model.predict(images(8))
    assert torch.allclose(found.probabilities, model.logits(images(8)).softmax(1))
    assert (found.calibrated, found.unlike, found.quantile) == (False, None, None)
