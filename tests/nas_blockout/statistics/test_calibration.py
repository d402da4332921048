"""One temperature: against logits whose temperature is known, scipy's minimum and errors computed by hand."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from nas_blockout.statistics.calibration import LARGEST, SMALLEST, calibrated, calibration_error, fit_temperature


def labeled(images: int, temperature: float, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that were drawn with the probabilities of these logits divided by a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, 6, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    logits, labels = labeled(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_it_is_the_minimum_that_scipy_finds() -> None:
    logits, labels = labeled(300, 1.7)
    loss = lambda t: float(F.cross_entropy(logits.double() / t, labels))  # noqa: E731
    oracle = minimize_scalar(loss, bounds=(SMALLEST, LARGEST), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(oracle.x, rel=1e-4)


def test_the_order_of_classes_stays_and_the_likelihood_does_not_fall() -> None:
    logits, labels = labeled(500, 3.0)
    temperature = fit_temperature(logits, labels)
    assert torch.equal((logits / temperature).argsort(1), logits.argsort(1))
    before, after = (calibration_error(logits, labels, temperature=each) for each in (1.0, temperature))
    assert after.nll.value < before.nll.value
    assert after.ece.value < before.ece.value / 2


def test_where_every_image_is_right_or_wrong_it_stays_within_its_range() -> None:
    logits = torch.eye(3).repeat(5, 1)
    right = torch.arange(3).repeat(5)
    assert fit_temperature(logits, right) == SMALLEST
    assert fit_temperature(logits, (right + 1) % 3) == LARGEST


def test_errors_are_those_computed_by_hand() -> None:
    # Three images at confidence .9, two of them right; one at .6, right: 3/4 * |2/3 - .9| + 1/4 * |1 - .6|.
    odds = torch.tensor([0.9, 0.9, 0.9, 0.6])
    logits = torch.stack([odds.log(), (1 - odds).log()], 1)
    labels = torch.tensor([0, 0, 1, 0])
    found = calibration_error(logits, labels)
    assert found.images == 4
    assert found.ece.value == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.4, abs=1e-6)
    assert found.nll.value == pytest.approx(-(2 * math.log(0.9) + math.log(0.1) + math.log(0.6)) / 4, abs=1e-6)
    assert found.ece.low <= found.ece.value <= found.ece.high


def test_the_interval_of_the_likelihood_is_that_of_the_normal_approximation() -> None:
    logits, labels = labeled(4000, 1.0)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    half = 1.96 * float(losses.std()) / math.sqrt(len(losses))
    found = calibration_error(logits, labels).nll
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=half / 5)


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.full((2, 3), torch.nan), torch.zeros(3, 3)])
def test_what_cannot_be_calibrated_is_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have a row for each label|must be finite"):
        fit_temperature(logits, torch.zeros(min(2, len(logits)), dtype=torch.int64))


def test_test_images_are_judged_by_the_temperature_of_the_validation_images() -> None:
    validation, test = labeled(2000, 2.0, seed=1), labeled(2000, 2.0, seed=2)
    found = calibrated(validation, test)
    assert found["temperature"] == fit_temperature(*validation)
    assert found["test"]["after"] == calibration_error(*test, temperature=found["temperature"]).to_json()
    assert found["test"]["before"] == calibration_error(*test).to_json()
    assert calibrated(validation)["test"] is None
