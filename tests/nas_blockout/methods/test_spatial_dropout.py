"""Spatial dropout, against torch's `dropout2d` in distribution."""

import math

import pytest
import torch
from torch.nn import functional as F

from nas_blockout.methods.spatial_dropout import SpatialDropout, SpatialDropoutSettings, spatial_dropout


def seeded(seed: int = 6) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_channel_is_kept_or_dropped_whole() -> None:
    y = spatial_dropout(torch.ones(50, 20, 3, 4), rate=0.4, generator=seeded()).flatten(2)
    assert bool((y == y[:, :, :1]).all())
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.6]))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_outputs_are_distributed_as_those_of_torch(rate: float) -> None:
    x = torch.ones(100, 100, 2, 2)
    ours = spatial_dropout(x, rate=rate, generator=seeded())[:, :, 0, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = F.dropout2d(x, rate)[:, :, 0, 0]
    torch.testing.assert_close(ours.unique(), theirs.unique())
    assert abs(float((ours == 0).float().mean() - (theirs == 0).float().mean())) < 5 * math.sqrt(
        2 * rate * (1 - rate) / 1e4
    )


def test_samples_are_drawn_apart() -> None:
    y = spatial_dropout(torch.ones(30, 8, 2, 2), rate=0.5, generator=seeded())[:, :, 0, 0]
    assert len(y.unique(dim=0)) > 20


def test_features_are_refused() -> None:
    layer = SpatialDropout(SpatialDropoutSettings())
    with pytest.raises(ValueError, match=r"SpatialDropout reads maps .*, got \(2, 3\)"):
        layer(torch.ones(2, 3), seeded())
    assert repr(layer) == "SpatialDropout(rate=0.1)"
