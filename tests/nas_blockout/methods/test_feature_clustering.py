"""Label maps against scikit-learn's k-means and a nearest agglomeration in loops, and the laws of the controls."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label as connected
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from nas_blockout.methods.feature_clustering import cells, descriptors, kmeans, rena, shuffled
from tests.emulated_device import DEVICE, emulated
from tests.nas_blockout.methods import oracles


def seeded(seed: int = 9) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_maps(images: int, channels: int, height: int, width: int) -> Tensor:
    """Rectified random maps whose neighbors are correlated, as after a convolution."""
    noise = torch.randn(images, channels, height + 4, width + 4, generator=seeded())
    return torch.relu(torch.nn.functional.avg_pool2d(noise, 5, stride=1) * 5)


def inertia(points: Tensor, labels: Tensor) -> float:
    total = 0.0
    for number in range(int(labels.max()) + 1):
        members = points[labels == number]
        if len(members):
            total += float((members - members.mean(0)).square().sum())
    return total


def test_squared_distances_of_descriptors_are_two_minus_twice_the_correlation() -> None:
    maps = smooth_maps(30, 2, 3, 4).double()
    points = descriptors(maps)
    for channel in range(2):
        expected = np.corrcoef(maps[:, channel].flatten(1).t().numpy())
        found = 1 - torch.cdist(points[channel], points[channel]).square() / 2
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_positions_that_never_change_are_described_by_zeros() -> None:
    maps = smooth_maps(20, 2, 3, 3)
    maps[:, 0, 1, 1] = 0.7
    maps[:, 1] = 0
    points = descriptors(maps)
    assert bool(points.isfinite().all())
    assert bool((points[0, 4] == 0).all())
    assert bool((points[1] == 0).all())
    torch.testing.assert_close(points[0, [0, 1, 2, 3, 5, 6, 7, 8]].norm(dim=1), torch.ones(8))


def test_kmeans_finds_the_labels_that_scikit_learn_finds_where_they_are_plain() -> None:
    centers = torch.randn(3, 5, 16, generator=seeded()) * 4
    truth = torch.randint(5, (3, 60), generator=seeded(1))
    points = centers.gather(1, truth[:, :, None].expand(-1, -1, 16)) + 0.1 * torch.randn(3, 60, 16, generator=seeded(2))
    found = kmeans(points, 5, generator=seeded())
    for channel in range(3):
        theirs = KMeans(5, n_init=5, random_state=0).fit(points[channel].numpy()).labels_
        assert adjusted_rand_score(found[channel], theirs) == 1
        assert adjusted_rand_score(found[channel], truth[channel]) == 1


def test_kmeans_is_as_good_as_that_of_scikit_learn() -> None:
    points = descriptors(smooth_maps(64, 8, 10, 10))
    labels = kmeans(points, 10, generator=seeded())
    ours = sum(inertia(*pair) for pair in zip(points, labels, strict=True))
    theirs = sum(KMeans(10, n_init=1, random_state=0).fit(channel.numpy()).inertia_ for channel in points)
    assert ours < 1.02 * theirs


def test_kmeans_ends_where_no_position_is_nearer_to_another_center() -> None:
    points = descriptors(smooth_maps(40, 1, 8, 8)).double()
    labels = kmeans(points, 6, generator=seeded())[0]
    centers = torch.stack([points[0][labels == number].mean(0) for number in range(6)])
    assert torch.equal(torch.cdist(points[0], centers).argmin(1), labels)


def test_kmeans_from_its_own_result_stays() -> None:
    points = descriptors(smooth_maps(40, 3, 8, 8))
    labels = kmeans(points, 6, generator=seeded())
    assert torch.equal(kmeans(points, 6, generator=seeded(1), start=labels), labels)


def test_kmeans_from_a_start_lowers_the_inertia() -> None:
    points = descriptors(smooth_maps(40, 2, 8, 8))
    start = shuffled(kmeans(points, 6, generator=seeded()), seeded())
    found = kmeans(points, 6, generator=seeded(), start=start)
    for channel in range(2):
        assert inertia(points[channel], found[channel]) < inertia(points[channel], start[channel])


def test_an_empty_cluster_keeps_its_center_until_it_is_nearest() -> None:
    points = descriptors(smooth_maps(40, 2, 8, 8))
    start = torch.zeros(2, 64, dtype=torch.int64)
    found = kmeans(points, 6, generator=seeded(), start=start)
    for channel in range(2):
        assert found[channel].unique().tolist() == list(range(6))
        assert inertia(points[channel], found[channel]) < 0.8 * inertia(points[channel], start[channel])


@pytest.mark.parametrize("begun", [False, True])
def test_kmeans_reads_nothing_of_an_accelerator_and_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    points = descriptors(torch.randn(24, 5, 6, 6, generator=seeded()))
    start = torch.arange(36).expand(5, -1) // 9
    # In float64, in which no rounding decides where a position belongs. Draws of a device are others.
    expected = kmeans(points.double(), 4, generator=seeded(), start=start)
    with emulated(monkeypatch) as emulation:
        there = points.double().to(DEVICE)
        generator = torch.Generator(DEVICE).manual_seed(0)
        found = kmeans(there, 4, generator=generator, start=start.to(DEVICE) if begun else None)
        assert (emulation.reads, emulation.waits, emulation.copies) == (0, 0, 0)
        if begun:
            assert torch.equal(found.cpu(), expected)


def test_kmeans_takes_channels_in_parts_where_memory_is_short() -> None:
    points = descriptors(smooth_maps(20, 5, 6, 6))
    whole = kmeans(points, 4, generator=seeded(), start=torch.arange(36).expand(5, -1) // 9)
    start = torch.arange(36).expand(5, -1) // 9
    parts = kmeans(points, 4, generator=seeded(), start=start, max_numbers=2 * 36 * 24)
    assert torch.equal(parts, whole)
    assert kmeans(points, 4, generator=seeded()).shape == (5, 36)


@pytest.mark.parametrize("method", ["kmeans", "rena"])
def test_channels_without_any_activity_still_get_labels(method: str) -> None:
    points = torch.zeros(2, 36, 10)
    labels = kmeans(points, 4, generator=seeded()) if method == "kmeans" else rena(points, 4, height=6, width=6)
    assert 0 <= int(labels.min()) <= int(labels.max()) < 4


@pytest.mark.parametrize(
    ("height", "width", "clusters"), [(10, 11, 4), (4, 5, 3), (6, 6, 4), (1, 9, 2), (7, 3, 1), (3, 3, 8), (4, 4, 16)]
)
def test_rena_equals_its_loop_oracle(height: int, width: int, clusters: int) -> None:
    points = descriptors(smooth_maps(30, 3, height, width).double())
    labels = rena(points, clusters, height=height, width=width)
    for channel in range(3):
        found = {frozenset((labels[channel] == number).nonzero().flatten().tolist()) for number in range(clusters)}
        assert found == {frozenset(group) for group in oracles.rena(points[channel], clusters, height, width)}


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_rena_gives_as_many_connected_clusters_as_asked_for(height: int, width: int, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, height * width))
    points = torch.randint(0, 2, (2, height * width, 3), generator=seeded(data.draw(st.integers(0, 99)))).float()
    labels = rena(points, clusters, height=height, width=width)  # few values, so many ties
    assert_connected(labels.view(2, height, width), clusters)


def test_rena_halves_the_clusters_in_every_round_at_least() -> None:
    """No giant cluster: with a fifth of the positions left, none holds more than a third of the map."""
    labels = rena(descriptors(smooth_maps(50, 6, 12, 12)), 29, height=12, width=12)
    assert int(torch.stack([torch.bincount(row, minlength=29) for row in labels]).max()) < 48


def assert_connected(grids: Tensor, clusters: int) -> None:
    for grid in grids:
        assert grid.unique().tolist() == list(range(clusters))
        for number in range(clusters):
            assert connected((grid == number).numpy())[1] == 1


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_cells_are_connected_and_as_many_as_asked_for(height: int, width: int, data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, height * width))
    generator = seeded(data.draw(st.integers(0, 999)))
    labels = cells(3, clusters, height=height, width=width, generator=generator, device=torch.device("cpu"))
    assert_connected(labels.view(3, height, width), clusters)


def test_shuffled_labels_keep_their_sizes_and_lose_their_places() -> None:
    labels = torch.arange(64).div(9, rounding_mode="floor").expand(5, -1)
    found = shuffled(labels, seeded())
    assert torch.equal(found.sort(1).values, labels)
    assert len(found.unique(dim=0)) == 5
    kept = float((found == labels).double().mean())
    assert abs(kept - 1 / 8) < 5 * math.sqrt(0.11 / 320)
