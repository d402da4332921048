"""DropCluster: its limits, its dropped share, when it learns, and what it keeps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_blockout.methods.dropcluster import DropCluster, DropClusterSettings, dropcluster
from nas_blockout.methods.dropout import dropout
from nas_blockout.methods.spatial_dropout import spatial_dropout
from nas_blockout.training import Loaders, TrainingSettings, fit

CHANNELS, HEIGHT, WIDTH = 4, 6, 8


def seeded(seed: int = 10) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(images: int = 24, seed: int = 3) -> Tensor:
    noise = torch.randn(images, CHANNELS, HEIGHT + 2, WIDTH + 2, generator=seeded(seed))
    return torch.relu(torch.nn.functional.avg_pool2d(noise, 3, stride=1))


def learned(**settings: Any) -> DropCluster:
    layer = DropCluster(DropClusterSettings(**{"ramp_epochs": 0, "rate": 0.25, **settings}))
    layer.learn(activations())
    return layer.train()


def ones(samples: int = 64) -> Tensor:
    return torch.ones(samples, CHANNELS, HEIGHT, WIDTH)


def test_one_cluster_is_spatial_dropout() -> None:
    y = learned(cluster_size=HEIGHT * WIDTH)(ones(), seeded())
    expected = spatial_dropout(ones(), rate=0.25, generator=seeded())
    torch.testing.assert_close(y, expected / expected.mean())


def test_as_many_clusters_as_positions_is_dropout() -> None:
    y = learned(cluster_size=1)(ones(), seeded())
    expected = dropout(ones(), rate=0.25, generator=seeded())
    torch.testing.assert_close(y, expected / expected.mean())


@pytest.mark.parametrize("clustering", ["kmeans", "rena"])
@pytest.mark.parametrize("masks", ["sample", "batch"])
def test_the_expected_dropped_share_is_the_rate(clustering: str, masks: str) -> None:
    layer, generator = learned(clustering=clustering, masks=masks), seeded()
    draws = 20_000 if masks == "sample" else 3000
    mask = (
        layer(ones(draws), generator)
        if masks == "sample"
        else torch.cat([layer(ones(1), generator) for _ in range(draws)])
    )
    spread = math.sqrt(0.25 * 0.75 * float((layer.sizes / (CHANNELS * HEIGHT * WIDTH)).square().sum()) / draws)
    assert abs(float((mask == 0).double().mean()) - 0.25) < 5 * spread
    by_position = (mask == 0).double().mean(0)
    assert float((by_position - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / draws)


def test_positions_of_a_cluster_share_their_fate_and_clusters_do_not() -> None:
    layer = learned()
    dropped = (layer(ones(3000), seeded()) == 0).flatten(2).double()
    for channel in range(CHANNELS):
        together = layer.labels[channel].flatten()[:, None] == layer.labels[channel].flatten()[None, :]
        correlation = torch.corrcoef(dropped[:, channel].t())
        torch.testing.assert_close(correlation[together], torch.ones_like(correlation[together]))
        assert float(correlation[~together].abs().max()) < 0.1


def test_masks_of_a_batch_are_the_same_for_every_sample() -> None:
    y = learned(masks="batch")(ones(), seeded())
    assert torch.equal(y, y[:1].expand_as(y))
    assert 0 < float((y == 0).float().mean()) < 1
    assert len(learned()(ones(), seeded()).flatten(1).unique(dim=0)) > 32


def test_the_output_is_scaled_to_the_mean_of_the_input() -> None:
    for masks in ("sample", "batch"):
        assert float(learned(masks=masks)(ones(), seeded()).double().mean()) == pytest.approx(1, abs=1e-6)


def test_a_batch_that_is_dropped_whole_gives_zeros_and_no_nan() -> None:
    layer = learned(cluster_size=HEIGHT * WIDTH, rate=1 - 1e-12)
    x = ones(2).requires_grad_()
    y = layer(x, seeded())
    y.sum().backward()
    assert bool((y == 0).all())
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_a_large_batch_in_half_precision_is_scaled_right() -> None:
    layer = DropCluster(DropClusterSettings(rate=0.25, ramp_epochs=0, labels="contiguous", cluster_size=256))
    layer.learn(torch.ones(2, 32, 64, 64))  # more entries than the largest number in half precision
    y = layer(torch.ones(4, 32, 64, 64).half(), seeded())
    assert float(y.double().mean()) == pytest.approx(1, abs=2e-3)


def test_nothing_is_dropped_before_the_first_clustering() -> None:
    layer = DropCluster(DropClusterSettings(rate=0.5))
    assert torch.equal(layer(ones(), seeded()), ones())
    assert layer.telemetry() == {}
    with pytest.raises(ValueError, match="DropCluster needs a generator in training"):
        layer(ones())


def observed_epochs(layer: DropCluster, epochs: int) -> list[int]:
    found = []
    for epoch in range(epochs):
        layer.prepare_epoch(epoch, epochs)
        if layer.needs_calibration:
            found.append(epoch)
            layer.eval()(activations())
            assert not layer.needs_calibration
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"start_epoch": 0, "update_every": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ({"start_epoch": 2, "update_every": 2}, [2, 4, 6]),
        ({"start_epoch": 1, "update_every": 0}, [1]),
        ({"start_epoch": 3, "update_every": 100}, [3]),
    ],
)
def test_clusters_are_learned_when_due(settings: dict[str, int], expected: list[int]) -> None:
    assert observed_epochs(DropCluster(DropClusterSettings(**settings)), 7) == expected


def test_a_resumed_layer_learns_when_an_uninterrupted_one_would() -> None:
    settings = DropClusterSettings(start_epoch=1, update_every=0)
    first, second = DropCluster(settings), DropCluster(settings)
    observed_epochs(first, 3)
    second.load_state_dict(first.state_dict())
    second.prepare_epoch(3, 7)
    assert not second.needs_calibration


def test_the_rate_rises_linearly_from_the_first_clustering_on() -> None:
    layer = DropCluster(DropClusterSettings(rate=0.4, start_epoch=2, ramp_epochs=4, update_every=0))
    shares = []
    for epoch in range(8):
        layer.prepare_epoch(epoch, 8)
        layer.eval()(activations())
        shares.append(float((layer.train()(ones(3000), seeded()) == 0).double().mean()))
    assert shares == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4], abs=0.01)


def test_a_start_after_the_last_epoch_is_refused() -> None:
    layer = DropCluster(DropClusterSettings(start_epoch=5))
    with pytest.raises(
        ValueError, match="start_epoch must lie before the last of the epochs, got start_epoch=5 for epochs=5"
    ):
        layer.prepare_epoch(0, 5)


def test_observing_leaves_the_activations_and_the_mode_alone() -> None:
    layer, x = DropCluster(DropClusterSettings()).eval(), activations()
    layer.prepare_epoch(0, 4)
    assert layer(x) is x
    assert not layer.training
    assert layer.labels.shape == x.shape[1:]


def test_learning_the_same_twice_gives_the_same_labels() -> None:
    assert torch.equal(learned().labels, learned().labels)
    assert not torch.equal(learned(labels="random").labels, learned(labels="random", seed=1).labels)


def test_more_images_than_asked_for_are_thinned_out_evenly() -> None:
    thinned = learned(images=9)  # of 24, every third: 8
    expected = DropCluster(DropClusterSettings())
    expected.learn(activations()[::3])
    assert torch.equal(thinned.labels, expected.labels)
    assert not torch.equal(thinned.labels, learned().labels)


def test_a_control_of_random_labels_keeps_the_learned_sizes() -> None:
    ours, control = learned(), learned(labels="random")
    k = ours.settings.clusters(HEIGHT * WIDTH)
    assert torch.equal(ours.sizes.view(-1, k).sort(1).values, control.sizes.view(-1, k).sort(1).values)
    assert not torch.equal(ours.labels, control.labels)


def test_a_control_of_contiguous_cells_has_as_many_clusters() -> None:
    control = learned(labels="contiguous")
    assert bool((control.sizes > 0).all())
    assert len(control.sizes) == CHANNELS * control.settings.clusters(HEIGHT * WIDTH) == CHANNELS * 5


@pytest.mark.parametrize("labels", ["random", "contiguous"])
def test_a_control_is_drawn_anew_at_every_update_from_the_data_alone(labels: str) -> None:
    layer = DropCluster(DropClusterSettings(labels=labels, update_every=1))
    found = []
    for epoch in (0, 1, 0):
        layer.prepare_epoch(epoch, 4)
        layer.learn(activations())
        found.append(layer.labels)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_an_update_starts_from_the_labels_it_has() -> None:
    layer = learned()
    before = layer.labels.clone()
    layer.prepare_epoch(2, 10)
    layer.learn(activations())
    assert torch.equal(layer.labels, before)
    layer.learn(activations(seed=4))
    assert not torch.equal(layer.labels, before)


@pytest.mark.parametrize("started", [False, True])
def test_a_state_is_loaded_before_and_after_the_first_clustering(started: bool) -> None:
    source = learned() if started else DropCluster(DropClusterSettings())
    other = learned(clustering="rena")
    other.load_state_dict(source.state_dict())
    for name in ("labels", "index", "sizes"):
        assert torch.equal(getattr(other, name), getattr(source, name))
    other.learn(activations(seed=4))
    assert other.labels.data_ptr() != source.labels.data_ptr()


def test_the_state_is_the_label_map_alone() -> None:
    assert learned().state_dict().keys() == {"labels"}


def test_a_state_without_labels_is_reported_as_missing() -> None:
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "labels"'):
        DropCluster(DropClusterSettings()).load_state_dict({})


def test_a_state_of_more_clusters_is_refused() -> None:
    rule = r"labels must lie in 0..1 for cluster_size=24 on maps of \(6, 8\), got 0..4; load a state with the settings"
    with pytest.raises(ValueError, match=rule):
        DropCluster(DropClusterSettings(cluster_size=24)).load_state_dict(learned().state_dict())


def test_maps_of_another_shape_are_refused() -> None:
    layer = learned()
    rule = r"maps must have the shape that the clusters were learned on, \(4, 6, 8\), got \(4, 6, 6\)"
    with pytest.raises(ValueError, match=rule):
        layer(torch.ones(2, 4, 6, 6), seeded())
    with pytest.raises(ValueError, match=r"DropCluster reads maps .*, got \(2, 3\)"):
        layer(torch.ones(2, 3), seeded())


def test_maps_of_another_shape_can_be_learned_anew() -> None:
    layer = learned()
    layer.learn(torch.rand(10, 3, 5, 5, generator=seeded()))
    assert layer.train()(torch.ones(2, 3, 5, 5), seeded()).shape == (2, 3, 5, 5)


def test_telemetry_counts_clusters_and_time() -> None:
    layer = DropCluster(DropClusterSettings(rate=0.2, ramp_epochs=2))
    layer.prepare_epoch(0, 4)
    layer.eval()(activations())
    found = layer.telemetry()
    assert found["dropcluster/clusters/4x6x8"] == 5
    assert found["dropcluster/rate/4x6x8"] == pytest.approx(0.1)
    assert 0 < found["dropcluster/clustering_share/4x6x8"] <= 1
    layer.prepare_epoch(1, 4)
    assert layer.telemetry()["dropcluster/clustering_share/4x6x8"] == 0


def test_the_mathematics_needs_no_layer() -> None:
    index, sizes = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3]), torch.tensor([2, 2, 1, 3])
    y = dropcluster(torch.ones(500, 2, 2, 2), index, sizes, rate=0.5, masks="sample", generator=seeded())
    assert torch.equal(y[:, 0, 0, 0] == 0, y[:, 0, 0, 1] == 0)
    assert not torch.equal(y[:, 0, 0, 0] == 0, y[:, 0, 1, 0] == 0)
    assert torch.equal(y[:, 1, 0, 1] == 0, y[:, 1, 1, 1] == 0)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"rate": 1.0}, "rate must be in [0, 1), got rate=1.0"),
        ({"cluster_size": 0.0}, "cluster_size must be at least 1, got cluster_size=0.0"),
        ({"images": 1}, "images must be at least 2, got images=1"),
        ({"start_epoch": -1}, "start_epoch must be at least 0, got start_epoch=-1"),
        ({"ramp_epochs": -1}, "ramp_epochs must be at least 0, got ramp_epochs=-1"),
        ({"seed": -1}, "seed must be in [0, 2**63-1], got seed=-1"),
        ({"clustering": "ward"}, "clustering must be one of kmeans, rena, got 'ward'"),
        ({"masks": "none"}, "masks must be one of sample, batch, got 'none'"),
        ({"labels": "true"}, "labels must be one of learned, random, contiguous, got 'true'"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError) as caught:
        DropClusterSettings(**setting)
    assert str(caught.value) == rule


@pytest.mark.parametrize(
    ("size", "positions", "expected"), [(10, 100, 10), (10, 4, 1), (1, 7, 7), (1000, 7, 1), (2.5, 10, 4)]
)
def test_a_cluster_is_made_for_so_many_positions(size: float, positions: int, expected: int) -> None:
    assert DropClusterSettings(cluster_size=size).clusters(positions) == expected


class Images:
    """Small labeled images, in the form that the training loop reads."""

    def __init__(self) -> None:
        self.x = torch.randn(48, 1, 8, 8, generator=seeded())
        self.y = torch.arange(48) % 3

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, generator: torch.Generator | None = None, first: int = 0) -> Any:
        order = torch.arange(48) if generator is None else torch.randperm(48, generator=generator)
        for part in order.split(16)[first:]:
            yield self.x[part], self.y[part]

    def sample(self, images: int, generator: torch.Generator) -> Any:
        yield self.x[torch.randperm(48, generator=generator)[:images]]


class Network(nn.Module):
    """One convolution, DropCluster, a classifier."""

    def __init__(self, settings: DropClusterSettings) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.drop = DropCluster(settings)
        self.classes = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        maps = self.drop(torch.relu(self.convolution(x)), generator)
        return self.classes(maps.flatten(1))


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(DropClusterSettings(rate=0.3, start_epoch=1, update_every=2, ramp_epochs=2))


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_training_gives_the_numbers_of_an_uninterrupted_one(stop: int) -> None:
    loaders, settings = Loaders(Images(), Images()), TrainingSettings(epochs=6, batch_size=16)
    whole = [record.train_loss for record in fit(network(), loaders, settings, seed=1)]
    epochs = fit(network(), loaders, settings, seed=1)
    records = [next(epochs) for _ in range(stop)]
    start = copy.deepcopy(records[-1].checkpoint)
    rest = [record.train_loss for record in fit(network(), loaders, settings, seed=1, start=start)]
    assert [record.train_loss for record in records] + rest == whole
    assert len(set(whole)) == 6


def test_the_training_loop_shows_the_layer_images_and_reports_its_telemetry() -> None:
    model = network()
    records = list(fit(model, Loaders(Images(), Images()), TrainingSettings(epochs=3, batch_size=16), seed=1))
    assert model.drop.labels.shape == (4, 8, 8)
    assert "dropcluster/clusters/4x8x8" not in records[0].telemetry
    assert records[1].telemetry["dropcluster/rate/4x8x8"] == pytest.approx(0.15)
    assert records[2].telemetry["dropcluster/rate/4x8x8"] == pytest.approx(0.3)


def test_settings_are_printed() -> None:
    assert repr(DropCluster(DropClusterSettings())) == "DropCluster(rate=0.1, cluster_size=10.0, labels=learned)"
