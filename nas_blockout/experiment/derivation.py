"""Between the stages of an experiment: the network of the second is derived from that of the first."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.batch_statistics import (
    STATISTICS_IMAGES,
    estimate_statistics,
    estimated_statistics,
)
from nas_blockout.data import Loader, Splits
from nas_blockout.experiment.builder import build, plain
from nas_blockout.experiment.config import Experiment
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.supernet.darts import Darts
from nas_blockout.networks import Branchable, Network
from nas_blockout.structure.confusion import ConfusionSettings, class_branches, memberships, soft_confusion
from nas_blockout.structure.distill import (
    TOLERANCE,
    DistillationSettings,
    Distilled,
    Learned,
    distill,
    equality_of,
    harden,
    logits_of_both,
    logits_under,
    network_of,
    random_like,
    shuffled,
    threshold_for,
    transplant,
    unbranched,
    weights_under,
    wiring_of,
)
from nas_blockout.structure.membership_ends import End, listed
from nas_blockout.structure.pruning import PruningSettings, magnitudes
from nas_blockout.structure.wiring import Wiring
from nas_blockout.training import evaluate

EVALUATION_BATCH = 512
EQUALITY_IMAGES = 64
IMAGES_OF_VERSION_1 = 1024  # the first of the file order
STAGE_SEED = 7_919  # keeps the draws of the second stage apart from those of the first


@dataclass(frozen=True, slots=True)
class Derivation:
    """How the network of the second stage came from that of the first, and what that cost in accuracy.

    Args:
        architecture: The branched network.
        gap: Validation accuracies around the discretization: ``soft`` (the learned network as it is), ``drawn`` (the
            mean over draws of C; only of Blockout), ``raw`` (under the memberships as they were thresholded), ``hard``
            (under what is left of them when they are trimmed, merged and cleaned up: the difference is what that
            costs), ``inherited`` (the branched network before it is trained). Each network is evaluated with statistics
            of normalization of its own. Older records lack ``raw``.
        equality: Largest difference of logits between the learned network under hard memberships and a branched one
            with the same weights, its bound (for logits up to 1; of larger ones a share of the largest), and how far
            the logits spread over the images. By precision; ``raw_`` and
            the precision for the memberships as they were thresholded, before anything was trimmed, merged or cleaned
            up, and the network that they describe. Older records lack those, and the spread.
        overhead_seconds: Wall-clock of distillation, proof and gap.
        probabilities: P by layer, as learned or as pruning or confusions give it, rounded to four digits.
        threshold: From which on a probability became a membership.
        thresholds: Validation accuracy of the hard network by threshold, where the threshold was chosen by it.
        membership_ends: To which end P came while it was learned, by layer; empty where P was not learned, and in
            older records.
    """

    architecture: Architecture
    gap: Mapping[str, float]
    equality: Mapping[str, Mapping[str, float]]
    overhead_seconds: float
    probabilities: Mapping[str, list[list[float]]]
    threshold: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    membership_ends: Mapping[str, End] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the derivation as plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__} | {"architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Derivation":
        """Read a derivation back."""
        return cls(**{**document, "architecture": Architecture.from_json(document["architecture"])})


def derive(
    experiment: Experiment, learned: nn.Module, splits: Splits, *, device: str | torch.device
) -> tuple[Derivation, Network]:
    """Turn the network of the first stage into that of the second.

    Args:
        experiment: What is run; it has a derivation.
        learned: The trained network of its first stage.
        splits: Its data; only training and validation images are read.
        device: Where both networks are left.

    Returns:
        The record of the derivation, and the branched network, ready to be trained.
    """
    began = time.perf_counter()
    settings = experiment.derivation
    assert settings is not None
    assert isinstance(learned, Blockout | Darts | Branchable)
    learned.cpu().eval()  # the proof compares float64 logits, which not every device computes
    probabilities = _probabilities(learned, settings, splits, seed=experiment.seed, device=device)
    generator = torch.Generator().manual_seed(experiment.seed)
    sample = list(Loader(splits.train, EVALUATION_BATCH).sample(STATISTICS_IMAGES, generator))
    estimated = experiment.training.evaluation_statistics == "estimated"
    estimates = [batch.to(device) for batch in sample] if estimated else []
    found = _structures(experiment, learned, probabilities, splits, estimates, device=device)
    branched = second_network(experiment, found.distilled.architecture, splits)
    raw = second_network(experiment, found.raw.architecture, splits)
    images = sample[0][:EQUALITY_IMAGES].cpu()
    equality = _equality(learned, found.distilled, branched, images)
    against_raw = _equality(learned, found.raw, raw, images, found.hard)
    equality |= {f"raw_{precision}": entry for precision, entry in against_raw.items()}
    if isinstance(settings, PruningSettings) or settings.weights == "inherited":
        transplant(learned, found.distilled, branched)
        batches = estimates or _as_version_1(splits, experiment.training.batch_size)
        estimate_statistics(branched.to(device), [batch.to(device) for batch in batches])
    draws = settings.draws if isinstance(settings, DistillationSettings) else 0
    evaluated = _Evaluated(learned.to(device), Loader(splits.validation, EVALUATION_BATCH), estimates, device)
    gap = _gap(evaluated, found, branched.to(device), draws=draws, seed=experiment.seed)
    seconds = time.perf_counter() - began
    architecture, threshold, tried = found.distilled.architecture, found.threshold, found.tried
    return Derivation(architecture, gap, equality, seconds, listed(probabilities), threshold, tried), branched


def _as_version_1(splits: Splits, batch_size: int) -> list[Tensor]:
    """Return the images from which version 1 estimated statistics, whose studies go on with the numbers they had."""
    batches = Loader(splits.train, batch_size).batches()
    return [x for x, _ in islice(batches, -(-IMAGES_OF_VERSION_1 // batch_size))]


def second_network(experiment: Experiment, architecture: Architecture, splits: Splits) -> Network:
    """Return the branched network of the second stage with initial weights of its own."""
    network = build(replace(plain(experiment, architecture), seed=experiment.seed + STAGE_SEED), splits)
    assert isinstance(network, Network)
    return network


def _probabilities(
    learned: Learned,
    settings: DistillationSettings | PruningSettings | ConfusionSettings,
    splits: Splits,
    *,
    seed: int,
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Return P: as learned, or in its place the magnitudes of pruning or the memberships from choices or confusions."""
    if isinstance(learned, Blockout):
        return {name: p.detach() for name, p in learned.probabilities().items()}
    if isinstance(learned, Darts):
        return learned.memberships()
    if isinstance(settings, PruningSettings):
        return magnitudes(learned)
    assert isinstance(settings, ConfusionSettings)
    validation = Loader(splits.validation, EVALUATION_BATCH)
    confusion = soft_confusion(learned.to(device), validation.batches(), len(splits.class_names), device=device)
    learned.cpu()
    hard = memberships(learned, class_branches(confusion, settings, seed=seed), settings)
    return {name: value.to(torch.get_default_dtype()) for name, value in hard.items()}


@dataclass(frozen=True, slots=True)
class _Structures:
    """What became of the probabilities.

    Args:
        distilled: What is built and trained on.
        hard: The memberships as they were thresholded, before anything was trimmed, merged or cleaned up; of the
            placebo ``unbranched`` the P of the nodes that reach the threshold.
        raw: The branched network that computes exactly what the learned one does under `hard`.
        threshold: Behind `distilled`.
        tried: Accuracies by threshold, where they chose it.
    """

    distilled: Distilled
    hard: Mapping[str, Tensor]
    raw: Distilled
    threshold: float
    tried: Mapping[str, float] = field(default_factory=dict)


def _structures(
    experiment: Experiment,
    learned: Learned,
    probabilities: Mapping[str, Tensor],
    splits: Splits,
    estimates: Sequence[Tensor],
    *,
    device: str | torch.device,
) -> _Structures:
    settings = experiment.derivation
    assert settings is not None
    costs = _Costs(learned)
    wiring = costs.wiring
    if not isinstance(settings, DistillationSettings):
        threshold = 0.5
        if isinstance(settings, PruningSettings):
            threshold = threshold_for(probabilities, settings.target_macs, costs.macs, wiring=wiring)
        hard = harden(probabilities, threshold)
        raw = _exact(probabilities, hard, wiring)
        return _Structures(distill(probabilities, hard, wiring=wiring), _as(probabilities, hard), raw, threshold)
    whole = settings.placebo == "unbranched"
    # The placebo without branches is derived from one cluster; P of the real clusters scales its weights at the end.
    learned_p, probabilities = probabilities, unbranched(probabilities) if whole else probabilities
    if settings.trim_by == "magnitude":
        under = learned_p if whole else None
        probabilities = _ranked(learned, probabilities, settings.threshold, under=under)
    evaluated = _Evaluated(learned, Loader(splits.validation, EVALUATION_BATCH), estimates, device)
    tried = _tried(evaluated, probabilities, settings, costs)
    # the most accurate threshold; of equal ones the highest, which keeps least
    threshold = max(tried, key=lambda candidate: (tried[candidate] or 0.0, candidate))
    distilled = _distill(settings, probabilities, _moved(experiment, settings, probabilities, threshold, costs), wiring)
    # What was thresholded before the targets raised the threshold: the highest candidate that it can come from.
    candidates = [each for each in settings.thresholds or (settings.threshold,) if each <= threshold]
    untrimmed = max(candidates, default=threshold)
    hard = _moved(experiment, settings, probabilities, untrimmed, costs)
    raw, memberships = _exact(probabilities, hard, wiring), _as(probabilities, hard)
    if whole:
        distilled, raw = (replace(each, memberships=_times(each.memberships, learned_p)) for each in (distilled, raw))
        memberships = _times(memberships, learned_p)
    accuracies = {str(candidate): accuracy for candidate, accuracy in tried.items() if accuracy is not None}
    return _Structures(distilled, memberships, raw, threshold, accuracies)


def _distill(
    settings: DistillationSettings,
    probabilities: Mapping[str, Tensor],
    hard: Mapping[str, Tensor],
    wiring: Wiring | None,
) -> Distilled:
    smallest, clean_up = settings.min_group_size, settings.clean_up
    return distill(probabilities, hard, wiring=wiring, min_group_size=smallest, clean_up=clean_up)


def _exact(probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor], wiring: Wiring | None) -> Distilled:
    return distill(probabilities, hard, wiring=wiring, clean_up=False)


def _as(probabilities: Mapping[str, Tensor], hard: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(probabilities[name].dtype) for name, value in hard.items()}


def _times(memberships: Mapping[str, Tensor], probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows * probabilities[name] for name, rows in memberships.items()}


def _ranked(
    learned: Learned,
    probabilities: Mapping[str, Tensor],
    threshold: float,
    *,
    under: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return P with what reaches the threshold put in the order of the nodes' magnitudes.

    The magnitudes are those under the hard memberships, or under the P of the nodes that these keep.
    """
    hard = harden(probabilities, threshold)
    kept = _as(probabilities, hard)
    kept = kept if under is None else _times(kept, under)
    importance = magnitudes(network_of(learned), weights_under(learned, kept))
    return {
        name: torch.where(hard[name], threshold + (1 - threshold) * importance[name], p)
        for name, p in probabilities.items()
    }


@dataclass(frozen=True, slots=True)
class _Costs:
    """What is distilled costs, as a share of the dense network that learned it."""

    learned: Learned

    @property
    def wiring(self) -> Wiring | None:
        return wiring_of(self.learned)

    def macs(self, distilled: Distilled) -> float:
        dense = network_of(self.learned)
        return dense.macs_under(distilled.complete) / dense.macs_under({})

    def weights(self, distilled: Distilled) -> float:
        dense = network_of(self.learned)
        return dense.weights_under(distilled.complete) / dense.weights_under({})


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """A learned network on the validation images, under other memberships than its own.

    Args:
        learned: On `device`.
        validation: Its images and labels.
        estimates: Images from which each network's statistics of normalization are estimated; none to keep those that
            the learned one has.
        device: Where it is evaluated.
    """

    learned: Learned
    validation: Loader
    estimates: Sequence[Tensor]
    device: str | torch.device

    @torch.no_grad()
    def accuracy_under(self, memberships: Mapping[str, Tensor]) -> float:
        """Return the validation accuracy under memberships, which are 0 or 1."""
        moved = {name: value.to(self.device) for name, value in memberships.items()}

        def logits(x: Tensor) -> Tensor:
            return logits_under(self.learned, x, moved)

        hits = 0
        with estimated_statistics(network_of(self.learned), self.estimates, logits):
            for x, y in self.validation.batches():
                hits += int((logits(x.to(self.device)).argmax(1) == y.to(self.device)).sum())
        return hits / len(self.validation)


def _tried(
    evaluated: _Evaluated,
    probabilities: Mapping[str, Tensor],
    settings: DistillationSettings,
    costs: _Costs,
) -> dict[float, float | None]:
    """Return the thresholds to choose from, each raised until it meets the targets, with accuracies if many are asked.

    The accuracy is that of the learned network under the hard memberships, on the validation images.
    """
    smallest, clean_up = settings.min_group_size, settings.clean_up
    targets = ((settings.target_macs, costs.macs), (settings.target_parameters, costs.weights))

    def meeting(threshold: float) -> float:
        for target, share in targets:
            if target is not None:
                threshold = threshold_for(
                    probabilities,
                    target,
                    share,
                    wiring=costs.wiring,
                    least=threshold,
                    min_group_size=smallest,
                    clean_up=clean_up,
                )
        return threshold

    if not settings.thresholds:
        return {meeting(0.0 if settings.fill_target else settings.threshold): None}
    accuracies = dict[float, float | None]()
    evaluated.learned.to(evaluated.device)
    above: dict[str, Tensor] = {}
    for threshold in sorted({meeting(candidate) for candidate in settings.thresholds}, reverse=True):
        hard = harden(probabilities, threshold)
        if above and all(torch.equal(hard[name], above[name]) for name in hard):
            continue  # the same network
        above, kept = hard, _distill(settings, probabilities, hard, costs.wiring).memberships
        accuracies[threshold] = evaluated.accuracy_under(kept)
    evaluated.learned.cpu()
    return accuracies


def _moved(
    experiment: Experiment,
    settings: DistillationSettings,
    probabilities: Mapping[str, Tensor],
    threshold: float,
    costs: _Costs,
) -> dict[str, Tensor]:
    """Return the hard memberships that were learned, or those of the placebo in their place."""
    hard = harden(probabilities, threshold)
    if settings.placebo == "random":
        share, clean_up = costs.macs(_distill(settings, probabilities, hard, costs.wiring)), settings.clean_up
        return random_like(
            probabilities, share, costs.macs, seed=experiment.seed, wiring=costs.wiring, clean_up=clean_up
        )
    generator = torch.Generator().manual_seed(experiment.seed)
    return shuffled(hard, generator, placebo=settings.placebo)


def _gap(evaluated: _Evaluated, found: _Structures, branched: Network, *, draws: int, seed: int) -> dict[str, float]:
    learned, validation, device = evaluated.learned, evaluated.validation, evaluated.device
    with estimated_statistics(learned, evaluated.estimates):
        accuracies = {"soft": evaluate(learned, validation, device=device).accuracy}
    if isinstance(learned, Blockout) and draws:
        generator = torch.Generator(device).manual_seed(seed)
        p = {name: value.detach() for name, value in learned.probabilities().items()}
        drawn = [{name: torch.bernoulli(q, generator=generator) for name, q in p.items()} for _ in range(draws)]
        accuracies["drawn"] = sum(map(evaluated.accuracy_under, drawn)) / draws
    accuracies["raw"] = evaluated.accuracy_under(found.hard)
    accuracies["hard"] = evaluated.accuracy_under(found.distilled.memberships)
    accuracies["inherited"] = evaluate(branched, validation, device=device).accuracy
    return accuracies


def _equality(
    learned: Learned,
    distilled: Distilled,
    branched: Network,
    images: Tensor,
    hard: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return by precision how far the branched network is from the learned one under its or other memberships."""
    differences = {}
    for dtype in TOLERANCE:
        masked, found = logits_of_both(learned, distilled, branched, images.to(dtype), hard=hard)
        # The statistics of normalization are of other memberships, with which values of a deep network may grow large.
        differences[str(dtype).removeprefix("torch.")] = equality_of(masked, found)
    return differences
