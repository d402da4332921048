import pytest
import torch

from nas_blockout.data import DataSettings, Splits, load
from nas_blockout.data.corruptions import CORRUPTIONS, TESTING, CorruptedImages, corrupt


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load(DataSettings(validation_samples=60))


def kept(splits: Splits, images: int = 20, severities: tuple[int, ...] = (1, 4), seed: int = 3) -> CorruptedImages:
    part = splits.validation
    return CorruptedImages(part, splits.preprocessing, images=images, severities=severities, seed=seed)


def test_all_testing_kinds_and_no_tuning_kind_at_the_severities_asked_for(splits):
    found = [(kind, severity) for kind, severity, _ in kept(splits).parts()]
    assert found == [(kind, severity) for kind in TESTING for severity in (1, 4)]
    assert {kind for kind, _ in found} <= set(TESTING) < set(CORRUPTIONS)


def test_images_are_those_of_corrupt_rounded_to_bytes(splits):
    images = kept(splits, severities=(2,))
    plain = splits.preprocessing.undo(splits.validation.images[images.index])
    for kind, severity, part in images.parts():
        if kind == "contrast":  # draws nothing
            expected = corrupt(plain, kind, severity=severity, generator=torch.Generator())
            assert (splits.preprocessing.undo(part.images[:]) - expected).abs().max() <= 0.5 / 255 + 1e-5
        assert torch.equal(part.labels, splits.validation.labels[images.index])


def test_the_same_seed_gives_the_same_images_and_another_one_others(splits):
    def pixels(seed: int) -> torch.Tensor:
        return torch.cat([part.images[:] for _, _, part in kept(splits, seed=seed).parts()])

    assert torch.equal(pixels(3), pixels(3))
    assert not torch.equal(pixels(3), pixels(4))
    assert torch.isfinite(pixels(2**63 - 1)).all()


def test_subsets_are_balanced_nested_and_at_most_everything(splits):
    few, more, all_of_them = (kept(splits, images, (1,)) for images in (20, 40, 1000))
    assert few.labels.bincount().tolist() == [2] * 10
    assert set(few.index.tolist()) < set(more.index.tolist())
    assert len(all_of_them) == 60


def test_draws_differ_between_kinds_and_severities(splits):
    found = {(kind, severity): part.images[:] for kind, severity, part in kept(splits).parts()}
    noises = [found[kind, severity] for kind in ("gaussian_noise", "impulse_noise") for severity in (1, 4)]
    assert all(not torch.equal(a, b) for number, a in enumerate(noises) for b in noises[:number])
