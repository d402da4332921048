import pytest
import torch

from nas_blockout.data import DataSettings, load
from nas_blockout.data.corruptions import corrupt, corrupted, mean_corruption_error


def test_the_mean_corruption_error_is_that_of_the_paper_by_hand():
    errors = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "snow": [0.2] * 5}
    baseline = {"fog": [0.5] * 5, "snow": [0.4] * 5}
    assert mean_corruption_error(errors, baseline) == pytest.approx((1.5 / 2.5 + 1.0 / 2.0) / 2)
    assert mean_corruption_error(baseline, baseline) == pytest.approx(1)
    assert mean_corruption_error(errors) == pytest.approx((0.3 + 0.2) / 2)


@pytest.mark.parametrize(
    ("errors", "baseline"),
    [
        ({}, {}),
        ({"fog": [0.1] * 4}, {"fog": [0.1] * 5}),
        ({"fog": []}, {"fog": []}),
        ({"fog": [0.1] * 4, "snow": [0.1] * 5}, None),
        ({"fog": [0.1] * 5}, {"snow": [0.1] * 5}),
        ({"fog": [0.1] * 5}, {"fog": [0.1] * 5, "snow": [0.1] * 5}),
    ],
)
def test_tables_that_do_not_match_are_refused(errors, baseline):
    with pytest.raises(ValueError, match=r"at least one kind|errors at the same severities"):
        mean_corruption_error(errors, baseline)


def test_a_baseline_without_loss_is_refused():
    with pytest.raises(ValueError, match=r"the baseline must make errors on fog, got 0"):
        mean_corruption_error({"fog": [0.1] * 5}, {"fog": [0.0] * 5})


def test_a_corrupted_split_is_the_corrupted_images_normalized_as_before():
    splits = load(DataSettings(validation_samples=40))
    found = corrupted(splits.validation, splits.preprocessing, "fog", severity=3, seed=9)
    plain = splits.preprocessing.undo(splits.validation.images)
    expected = corrupt(plain, "fog", severity=3, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(splits.preprocessing.undo(found.images), expected, atol=1e-5)
    assert torch.equal(found.labels, splits.validation.labels)
    assert found.background == splits.validation.background


def test_large_splits_are_corrupted_in_batches_and_repeat_with_the_seed():
    splits = load(DataSettings())
    first, again, other = (
        corrupted(splits.train, splits.preprocessing, "gaussian_noise", severity=2, seed=seed).images
        for seed in (1, 1, 2)
    )
    assert len(first) == len(splits.train) > 512
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
