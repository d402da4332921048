import json

import pytest
import torch

from nas_blockout.data import DataUnsuitable, Preprocessing
from nas_blockout.data.preprocessing import measure


def test_images_that_never_vary_are_refused():
    with pytest.raises(DataUnsuitable, match="must vary, got the same"):
        measure([torch.full((4, 1, 5, 5), 0.5)])


def test_a_channel_that_never_varies_is_only_centered():
    images = torch.stack(
        [torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((2, 4, 4), 0.25)], 1
    )
    measured = measure([images])
    assert measured.std[1] == 1
    assert measured.apply(images)[:, 1].abs().max() < 1e-6


def test_the_measure_is_that_of_all_images_at_once():
    images = torch.rand(9, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    measured = measure(images.split(4))
    assert (measured.channels, measured.height, measured.width) == (2, 4, 6)
    assert measured.mean == pytest.approx(images.mean((0, 2, 3)).tolist())
    assert measured.std == pytest.approx(images.std((0, 2, 3), correction=0).tolist())


def test_undo_is_the_inverse_of_apply():
    images = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    preprocessing = measure([images])
    assert torch.allclose(preprocessing.undo(preprocessing.apply(images)), images, atol=1e-6)


def test_preprocessing_survives_json():
    preprocessing = Preprocessing(3, 28, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_background_is_what_black_becomes():
    preprocessing = Preprocessing(2, 1, 1, (0.25, 0.5), (0.5, 0.25))
    black = preprocessing.apply(torch.zeros(1, 2, 1, 1)).flatten()
    assert preprocessing.background == pytest.approx(black.tolist())


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (0.2, 0.3)), ((0.1, 0.1), (0.2, 0.0))])
def test_preprocessing_that_cannot_be_applied_is_refused(mean, std):
    with pytest.raises(ValueError, match="std"):
        Preprocessing(2, 4, 4, mean, std)
