"""DropCluster: positions of a feature map that rise and fall together are dropped together.

Which positions belong together is learned from the activations of held training images, channel by channel, and learned
anew as training goes on. The layer asks for these images: between `prepare_epoch` and the epoch its attribute
`needs_calibration` is true, and the next forward pass in eval shows it the activations.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from nas_blockout.methods.feature_clustering import cells, descriptors, kmeans, rena, shuffled
from nas_blockout.methods.random_masks import bernoulli_, checked_maps, generator_for, threshold_of
from nas_blockout.randomness.batch_shards import own_rows, whole_rows
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import SEED, Range, check
from nas_blockout.training_protocol import TelemetryValue, TrainableLayer

Clustering = Literal["kmeans", "rena"]
Masks = Literal["sample", "batch"]
Labels = Literal["learned", "random", "contiguous"]

_EPOCH_STRIDE = 1_000_003  # a prime: the draws of two seeds meet only if the seeds are that far apart


@dataclass(frozen=True, slots=True)
class DropClusterSettings:
    """Settings of DropCluster.

    Args:
        rate: Probability that a cluster is dropped, and the expected dropped share of positions.
        cluster_size: Average number of positions per cluster; 1 is dropout, all positions is spatial dropout.
        clustering: ``kmeans``, or ``rena``, whose clusters are connected.
        start_epoch: Epoch of the first clustering, counted from 0; nothing is dropped before.
        update_every: Epochs between clusterings; 0 keeps the first one.
        ramp_epochs: Epochs over which the rate rises linearly to `rate`, from `start_epoch` on; 0 for no ramp.
        masks: One random mask per ``sample``, or one for the whole ``batch``.
        labels: ``learned``; or as ablations ``random``, clusters of the learned sizes at random positions, and
            ``contiguous``, the same number of random connected cells.
        images: Maximum number of images for the clustering; of more, evenly spaced ones are used.
        seed: Seed of the initial centers of k-means and of the ablations.
        last_stages: How many of the last convolution stages it follows, at most; None for all.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.1
    cluster_size: Annotated[float, Range(ge=1)] = 10.0
    clustering: Clustering = "kmeans"
    start_epoch: Annotated[int, Range(ge=0)] = 0
    update_every: Annotated[int, Range(ge=0)] = 2
    ramp_epochs: Annotated[int, Range(ge=0)] = 4
    masks: Masks = "sample"
    labels: Labels = "learned"
    images: Annotated[int, Range(ge=2)] = 128
    seed: Annotated[int, SEED] = 0
    last_stages: Annotated[int, Range(ge=1)] | None = None

    def __post_init__(self) -> None:
        check(self)

    def clusters(self, positions: int) -> int:
        """Return the number of clusters of a map."""
        return min(positions, max(1, round(positions / self.cluster_size)))


def dropcluster(
    x: Tensor, index: Tensor, sizes: Tensor, *, rate: float | Tensor, masks: Masks, generator: Randomness
) -> Tensor:
    r"""Drop clusters of positions, each on its own, and scale the rest up.

    .. math:: y_{nci} = \frac{N}{\sum_{ncj} m_{nc\,l_c(j)}} \, m_{nc\,l_c(i)} \, x_{nci},
        \qquad m_{ncl} \sim \mathrm{Bernoulli}(1 - p)

    with `l_c(i)` the cluster of position i in channel c and N the number of entries, over the whole batch.

    Args:
        x: Feature maps, shape ``(batch, channels, height, width)``.
        index: Cluster of every position, counted over all channels: ``c * k + l_c(i)``, shape ``(channels * height *
            width,)``.
        sizes: Positions of every cluster, shape ``(channels * k,)``.
        rate: p, in [0, 1): the expected share of entries that is dropped; or the threshold of what is kept, as of
            `bernoulli_`.
        masks: A draw for every ``sample``, or one for the whole ``batch``.
        generator: Source of randomness, on the device of `x`.

    Returns:
        Shaped as `x`, in its memory format; zeros if everything is dropped.

    References:
        Chen, Gautier, Aydore. DropCluster: A structured dropout for convolutional networks. arXiv:2002.02997, 2020.
    """
    keep = rate if isinstance(rate, Tensor) else 1 - rate
    draws = whole_rows(len(x), generator) if masks == "sample" else 1
    exact = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count the positions
    kept = bernoulli_(torch.empty(draws, len(sizes), dtype=exact, device=x.device), keep, generator)
    total = torch.mv(kept, sizes.to(exact)).sum(dtype=torch.float64).clamp_(min=1)
    kept.mul_((draws * len(index) / total).to(exact))
    if masks == "sample":
        kept = own_rows(kept, generator)
    return x * kept.to(x.dtype).index_select(1, index).view(len(kept), *x.shape[1:])


class DropCluster(TrainableLayer):
    """Drop clusters of correlated positions of every channel in training; the identity in eval.

    Before the first clustering nothing is dropped. The label map is part of the state.

    Args:
        settings: How to cluster and how much to drop.

    Attributes:
        labels: Label map, shape ``(channels, height, width)``; empty before the first clustering.
        needs_calibration: Whether the next forward pass in eval is used to learn the label map.
        clustering_seconds: Spent on clustering in the present epoch.

    Raises:
        ValueError: It is called in training without a generator, or with maps of another shape than it has learned on.

    References:
        Chen, Gautier, Aydore. DropCluster: A structured dropout for convolutional networks. arXiv:2002.02997, 2020.

    Differs from the paper in: k-means by default, where the paper clusters by recursive nearest agglomeration, which is
    the setting ``rena``; the number of clusters; warm starts of k-means; masks shared by a batch as a setting; and the
    controls.
    """

    labels: Tensor
    index: Tensor
    sizes: Tensor
    threshold: Tensor

    def __init__(self, settings: DropClusterSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ramp = 1.0
        self._epoch = 0
        self.clustering_seconds, self._began = 0.0, time.perf_counter()
        kept = torch.tensor(threshold_of(1 - settings.rate), dtype=torch.int32)
        self.register_buffer("threshold", kept, persistent=False)
        self.register_buffer("labels", torch.empty(0, 0, 0, dtype=torch.int64))
        self.register_buffer("index", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("sizes", torch.empty(0, dtype=torch.int64), persistent=False)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Set the rate of an epoch, counted from 0, and ask for activations if a clustering is due.

        Raises:
            ValueError: The first clustering would come after the last epoch, so that nothing would ever be dropped.
        """
        settings = self.settings
        since = epoch - settings.start_epoch
        if settings.start_epoch >= epochs:
            raise ValueError(
                f"start_epoch must lie before the last of the epochs, got start_epoch={settings.start_epoch} for "
                f"epochs={epochs}: nothing would be dropped"
            )
        self.ramp = min(1.0, max(0.0, (since + 1) / settings.ramp_epochs)) if settings.ramp_epochs else 1.0
        # In place: a compiled step would be compiled again for every other number.
        self.threshold.fill_(threshold_of(1 - settings.rate * self.ramp))
        due = settings.update_every > 0 and since % settings.update_every == 0
        self.needs_calibration = since >= 0 and (due or self.labels.numel() == 0)
        self._epoch, self.clustering_seconds, self._began = epoch, 0.0, time.perf_counter()

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return `x`, shape ``(batch, channels, height, width)``, with clusters dropped in training."""
        if not self.training:
            if self.needs_calibration:
                self.learn(x)
            return x
        generator = generator_for(self, generator)
        if self.labels.numel() == 0:
            return x
        if checked_maps(self, x).shape[1:] != self.labels.shape:
            raise ValueError(
                f"maps must have the shape that the clusters were learned on, {tuple(self.labels.shape)}, got "
                f"{tuple(x.shape[1:])}; put a DropCluster of its own at every place"
            )
        return dropcluster(
            x, self.index, self.sizes, rate=self.threshold, masks=self.settings.masks, generator=generator
        )

    @torch.no_grad()
    def learn(self, activations: Tensor) -> None:
        """Learn the label map from activations, shape ``(images, channels, height, width)``, and stop observing."""
        began = time.perf_counter()
        channels, height, width = checked_maps(self, activations).shape[1:]
        self._adopt(self._label_map(activations).view(channels, height, width))
        self.needs_calibration = False
        self.clustering_seconds += time.perf_counter() - began

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Describe the label map once an epoch: clusters a channel, rate, and the share of time spent on clustering.

        Keys end in the shape of the maps, such as ``dropcluster/clusters/32x28x28``.
        """
        if self.labels.numel() == 0:
            return {}
        place = "x".join(map(str, self.labels.shape))
        elapsed = max(time.perf_counter() - self._began, self.clustering_seconds, 1e-9)
        return {
            f"dropcluster/clusters/{place}": float((self.sizes > 0).sum()) / len(self.labels),
            f"dropcluster/rate/{place}": self.settings.rate * self.ramp,
            f"dropcluster/clustering_share/{place}": self.clustering_seconds / elapsed,
        }

    def extra_repr(self) -> str:
        return f"rate={self.settings.rate}, cluster_size={self.settings.cluster_size}, labels={self.settings.labels}"

    def _label_map(self, activations: Tensor) -> Tensor:
        settings, device = self.settings, activations.device
        channels, height, width = activations.shape[1:]
        clusters = settings.clusters(height * width)
        generator = torch.Generator(device).manual_seed(settings.seed + _EPOCH_STRIDE * self._epoch)
        if clusters == 1:
            return torch.zeros(channels, height * width, dtype=torch.int64, device=device)
        if clusters == height * width:
            return torch.arange(clusters, device=device).repeat(channels, 1)
        if settings.labels == "contiguous":
            return cells(channels, clusters, height=height, width=width, generator=generator, device=device)
        points = descriptors(activations[:: -(-len(activations) // settings.images)])
        if settings.clustering == "rena":
            labels = rena(points, clusters, height=height, width=width)
        else:
            known = settings.labels == "learned" and self.labels.shape == activations.shape[1:]
            start = self.labels.flatten(1) if known else None
            labels = kmeans(points, clusters, generator=generator, start=start)
        return shuffled(labels, generator) if settings.labels == "random" else labels

    def _adopt(self, labels: Tensor) -> None:
        """Take over a label map, shape ``(channels, height, width)``, and what the forward pass derives from it."""
        clusters = self.settings.clusters(labels.shape[1] * labels.shape[2])
        channels = len(labels)
        offsets = clusters * torch.arange(channels, device=labels.device)[:, None]
        self.labels = labels.contiguous()
        self.index = (labels.flatten(1) + offsets).flatten()
        # Not `bincount`, which waits for the device.
        sizes = torch.zeros(channels * clusters, dtype=torch.int64, device=labels.device)
        self.sizes = sizes.index_add_(0, self.index, torch.ones_like(self.index))

    def _require_known(self, labels: Tensor) -> None:
        clusters = self.settings.clusters(labels.shape[1] * labels.shape[2])
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < clusters:
            raise ValueError(
                f"labels must lie in 0..{clusters - 1} for cluster_size={self.settings.cluster_size} on maps of "
                f"{tuple(labels.shape[1:])}, got {int(labels.min())}..{int(labels.max())}; "
                "load a state with the settings that it was saved with"
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        labels = state_dict.get(prefix + "labels")
        if labels is not None:
            self._require_known(labels)
            self._adopt(labels.to(self.labels.device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *rest)
