"""An experiment: one training, fully described; and the run of it. The only module that wires the others together."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import BACKBONES, dense_of, name_of, scaled_to, stages_of
from nas_blockout.backbones.branched import BranchedNetwork, Sites, macs_of
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings, Loader, Splits
from nas_blockout.distill import (
    TOLERANCE,
    DistillationSettings,
    Distilled,
    distil,
    harden,
    largest_difference,
    shuffled,
    threshold_for,
    transplant,
)
from nas_blockout.methods import METHODS, NoneSettings, method_from_json, method_to_json
from nas_blockout.methods.blockout import Blockout, BlockoutSettings
from nas_blockout.train import Checkpoint, EpochRecord, Loaders, TrainingSettings, evaluate, fit
from nas_blockout.values import from_json, near, to_json

EVALUATION_BATCH = 512
EQUALITY_IMAGES = 64
_STAGE_SEED = 7_919  # keeps the draws of the second stage apart from those of the first


@dataclass(frozen=True, slots=True)
class Experiment:
    """One training, fully described.

    Args:
        data: What is learned from.
        backbone: Settings of a registered backbone.
        method: Settings of a registered method.
        training: How it is trained; its epochs count every stage.
        seed: Of the initial weights, the order of the images and all draws.
        architecture: Branches of the network; None for a dense one.
        distillation: How Blockout's structure becomes a branched network; None to keep the masked network, folded.
        target_macs: Scale all widths by one factor to come near to these multiply-accumulates an image.
    """

    data: DataSettings = field(default_factory=DataSettings)
    backbone: Any = field(default_factory=ConvNetSettings)
    method: Any = field(default_factory=NoneSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    architecture: Architecture | None = None
    distillation: DistillationSettings | None = None
    target_macs: int | None = None

    def __post_init__(self) -> None:
        if self.distillation is not None and not isinstance(self.method, BlockoutSettings):
            raise ValueError("distillation needs the method blockout, whose memberships it turns into branches")
        if self.distillation is not None and self.training.epochs < 2:
            raise ValueError(
                f"distillation needs at least 2 epochs, one to learn and one to train, got {self.training.epochs}"
            )
        if self.architecture is not None and isinstance(self.method, BlockoutSettings):
            raise ValueError("blockout learns its own architecture: give it no other")

    def to_json(self) -> dict[str, Any]:
        """Return the experiment as plain JSON types."""
        return {
            "data": to_json(self.data),
            "backbone": {"name": name_of(self.backbone), **to_json(self.backbone)},
            "method": method_to_json(self.method),
            "training": to_json(self.training),
            "seed": self.seed,
            "architecture": self.architecture.to_json() if self.architecture else None,
            "distillation": to_json(self.distillation) if self.distillation else None,
            "target_macs": self.target_macs,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Experiment":
        """Read an experiment back.

        Raises:
            ValueError: A key is unknown, a value has the wrong type or is refused; the message names it.
        """
        values = dict(document)
        architecture, distillation = values.pop("architecture", None), values.pop("distillation", None)
        experiment = cls(
            data=from_json(DataSettings, values.pop("data", {}), where="data"),
            backbone=backbone_from_json(values.pop("backbone", {"name": "convnet"})),
            method=method_from_json(values.pop("method", {"name": "none"})),
            training=from_json(TrainingSettings, values.pop("training", {}), where="training"),
            seed=int(values.pop("seed", 0)),
            architecture=Architecture.from_json(architecture) if architecture else None,
            distillation=from_json(DistillationSettings, distillation, where="distillation") if distillation else None,
            target_macs=values.pop("target_macs", None),
        )
        if values:
            raise ValueError(
                f"experiment: unknown key {next(iter(values))!r}; {near(next(iter(values)), cls.__slots__)}"
            )
        return experiment


@dataclass(frozen=True, slots=True)
class Handover:
    """What the learning of a structure hands over to the training of its branches.

    Args:
        architecture: The branched network.
        gap: Validation accuracies around the discretisation: ``soft``, ``drawn``, ``hard``, ``inherited``.
        equality: Largest difference of logits between the masked network and the branched one, and its bound, by
            precision.
        overhead_seconds: Wall-clock of distillation, proof and gap.
        probabilities: The learned P by layer, rounded to four digits.
    """

    architecture: Architecture
    gap: Mapping[str, float]
    equality: Mapping[str, Mapping[str, float]]
    overhead_seconds: float
    probabilities: Mapping[str, list[list[float]]]

    def to_json(self) -> dict[str, Any]:
        """Return the handover as plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__} | {"architecture": self.architecture.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Handover":
        """Read a handover back."""
        return cls(**{**document, "architecture": Architecture.from_json(document["architecture"])})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment ends in: a plain network in eval mode and what is known of it.

    Args:
        model: Gives logits by ``model(x)``; holds no trace of the method.
        architecture: Of a network built from stages; else None.
        parameters: Trainable parameters.
        macs: Multiply-accumulates an image.
        handover: What distillation handed over, if there was one.
    """

    model: nn.Module
    architecture: Architecture | None
    parameters: int
    macs: int
    handover: Handover | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Continues a run of an experiment; written whole after an epoch."""

    stage: str
    checkpoint: Checkpoint
    records: tuple[EpochRecord, ...]
    handover: Handover | None

    def to_state(self) -> dict[str, Any]:
        """Return a dictionary that `torch.save` writes and ``torch.load(weights_only=True)`` reads."""
        text = {
            "stage": self.stage,
            "records": [record.to_json() for record in self.records],
            "handover": self.handover.to_json() if self.handover else None,
        }
        return {"checkpoint": self.checkpoint.to_state(), "json": json.dumps(text)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Snapshot":
        """Read a snapshot back from what `torch.load` returned."""
        text = json.loads(state["json"])
        records = tuple(EpochRecord(**record) for record in text["records"])
        handover = Handover.from_json(text["handover"]) if text["handover"] else None
        return cls(text["stage"], Checkpoint(**state["checkpoint"]), records, handover)


class Run(Iterator[EpochRecord]):
    """A running experiment: iterate over it for epoch records, then read its `outcome`.

    Args:
        experiment: What to run.
        splits: Its data; the test images are never asked for.
        device: Where to train.
        start: Continue after this snapshot, with the numbers of a run that was never stopped.
    """

    def __init__(
        self,
        experiment: Experiment,
        splits: Splits,
        *,
        device: str | torch.device = "cpu",
        start: Snapshot | None = None,
    ) -> None:
        self.experiment = experiment
        self.splits = splits
        self.device = device
        self.outcome: Outcome | None = None
        self.failure: str | None = None
        self.records: list[EpochRecord] = list(start.records) if start else []
        self._start = start
        self._stage = start.stage if start else ""
        self._handover: Handover | None = start.handover if start else None
        settings = experiment.training
        train = Loader(splits.train, settings.batch_size, augment=experiment.data.augment)
        self._loaders = Loaders(train, Loader(splits.validation, EVALUATION_BATCH))
        self._records = self._run()

    def __next__(self) -> EpochRecord:
        """Train for one epoch and return its record."""
        return next(self._records)

    def snapshot(self) -> Snapshot:
        """Return what continues the run after the latest record; holds references, so write it at once."""
        checkpoint = self.records[-1].checkpoint
        assert checkpoint is not None, "a snapshot is taken after an epoch of this run"
        return Snapshot(self._stage, checkpoint, tuple(self.records), self._handover)

    def _run(self) -> Iterator[EpochRecord]:
        experiment = self.experiment
        if experiment.distillation is None:
            model = build(experiment, self.splits)
            yield from self._fit("train", model, experiment.training, experiment.seed)
            if self.failure is None:
                self.outcome = self._finish(model)
            return
        learning, training = _split_epochs(experiment.training, experiment.distillation)
        if self._handover is None:
            masked = build(experiment, self.splits)
            assert isinstance(masked, Blockout)
            yield from self._fit("learn", masked, learning, experiment.seed)
            if self.failure is not None:
                return
            self._handover, branched = self._hand_over(masked)
        else:
            branched = self._branched(self._handover.architecture)
        yield from self._fit("finetune", branched, training, experiment.seed + _STAGE_SEED)
        if self.failure is None:
            self.outcome = self._finish(branched)

    def _fit(self, stage: str, model: nn.Module, settings: TrainingSettings, seed: int) -> Iterator[EpochRecord]:
        start = self._start.checkpoint if self._start is not None and self._stage == stage else None
        done = [record for record in self.records if record.stage != stage]
        offset = (len(done), done[-1].sample_passes, done[-1].seconds) if done else (0, 0, 0.0)
        self._stage = stage
        for record in fit(model, self._loaders, settings, seed=seed, device=self.device, start=start):
            shifted = replace(
                record,
                stage=stage,
                epoch=record.epoch + offset[0],
                sample_passes=record.sample_passes + offset[1],
                seconds=record.seconds + offset[2],
            )
            self.records.append(shifted)
            self.failure = record.failure
            yield shifted

    def _hand_over(self, masked: Blockout) -> tuple[Handover, BranchedNetwork]:
        began = time.perf_counter()
        settings = self.experiment.distillation
        assert settings is not None
        masked.cpu().eval()
        probabilities = {name: p.detach() for name, p in masked.probabilities().items()}
        distilled = self._distil(masked, probabilities)
        branched = self._branched(distilled.architecture)
        equality = _equality(masked, distilled, branched, self.splits.train.images[:EQUALITY_IMAGES])
        if settings.weights == "inherited":
            transplant(masked, distilled, branched)
        gap = self._gap(masked.to(self.device), distilled, branched.to(self.device), settings.draws)
        rounded = {
            name: [[round(value, 4) for value in row] for row in p.tolist()] for name, p in probabilities.items()
        }
        seconds = time.perf_counter() - began
        return Handover(distilled.architecture, gap, equality, seconds, rounded), branched

    def _distil(self, masked: Blockout, probabilities: Mapping[str, Tensor]) -> Distilled:
        settings = self.experiment.distillation
        assert settings is not None
        network = masked.network
        assert isinstance(network, BranchedNetwork)
        channels = self.splits.train.images.shape[1]
        dense = macs_of(network.full, network.plan, channels)
        threshold = settings.threshold
        if settings.target_macs is not None:
            threshold = threshold_for(
                probabilities, settings.target_macs, lambda found: macs_of(found, network.plan, channels) / dense
            )
        generator = torch.Generator().manual_seed(self.experiment.seed)
        hard = shuffled(harden(probabilities, threshold), generator, placebo=settings.placebo)
        return distil(probabilities, hard)

    def _branched(self, architecture: Architecture) -> BranchedNetwork:
        experiment = replace(self.experiment, method=NoneSettings(), distillation=None, architecture=architecture)
        network = build(replace(experiment, seed=experiment.seed + _STAGE_SEED), self.splits)
        assert isinstance(network, BranchedNetwork)
        return network

    def _gap(self, masked: Blockout, distilled: Distilled, branched: BranchedNetwork, draws: int) -> dict[str, float]:
        validation, device = Loader(self.splits.validation, EVALUATION_BATCH), self.device
        generator = torch.Generator(device).manual_seed(self.experiment.seed)
        probabilities = masked.probabilities()
        drawn = []
        for _ in range(draws):
            drawn.append({name: torch.bernoulli(p.detach(), generator=generator) for name, p in probabilities.items()})
        hard = {name: value.to(device) for name, value in distilled.memberships.items()}
        return {
            "soft": evaluate(masked, validation, device=device).accuracy,
            "drawn": sum(_accuracy_under(masked, c, validation, device) for c in drawn) / draws,
            "hard": _accuracy_under(masked, hard, validation, device),
            "inherited": evaluate(branched, validation, device=device).accuracy,
        }

    def _finish(self, model: nn.Module) -> Outcome:
        trained = model.fold() if isinstance(model, Blockout) else model
        found = trained.full if isinstance(trained, BranchedNetwork) else None
        plain = rebuild(self.experiment, found, self.splits)
        plain.load_state_dict(_plain_state(trained.cpu().state_dict(), plain.state_dict()))
        plain.eval()
        parameters = sum(parameter.numel() for parameter in plain.parameters())
        architecture = plain.full if isinstance(plain, BranchedNetwork) else None
        return Outcome(plain, architecture, parameters, count_macs(plain, self.splits.train.images[:1]), self._handover)


def build(experiment: Experiment, splits: Splits) -> nn.Module:
    """Return the network of an experiment before training, with initial weights decided by its seed.

    Args:
        experiment: What to build.
        splits: Give the shape of an image and the number of classes.
    """
    shape, classes = splits.shape, len(splits.class_names)
    backbone = experiment.backbone
    if experiment.target_macs is not None:
        backbone = scaled_to(backbone, experiment.target_macs, shape, classes)
    kind = BACKBONES[name_of(backbone)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        network = kind.build(backbone, shape, classes, experiment.architecture, _sites(experiment.method))
        if isinstance(experiment.method, BlockoutSettings):
            return Blockout(network, network.connections, experiment.method)  # type: ignore[arg-type]
        return network


def rebuild(experiment: Experiment, architecture: Architecture | None, splits: Splits) -> nn.Module:
    """Return the plain network that an experiment ends in, without trained weights or any trace of its method.

    Args:
        experiment: What was run.
        architecture: What it ended in; None for a network that is not built from stages.
        splits: Give the shape of an image and the number of classes.
    """
    return build(replace(experiment, method=NoneSettings(), distillation=None, architecture=architecture), splits)


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates an image of the convolutions and matrix products of a network.

    Args:
        model: In eval mode.
        images: One image, shape ``(1, channels, height, width)``.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops()) // 2


def backbone_from_json(document: Mapping[str, Any]) -> Any:
    """Return the settings of a registered backbone from ``{"name": ..., setting: value}``."""
    values = dict(document)
    name = values.pop("name", "convnet")
    if name not in BACKBONES:
        raise ValueError(f"backbone.name: no such backbone {name!r}; {near(str(name), BACKBONES)}")
    return from_json(BACKBONES[name].settings, values, where="backbone")


def dense_macs(experiment: Experiment, splits: Splits) -> int:
    """Return the multiply-accumulates an image of the dense network of an experiment."""
    stages = stages_of(experiment.backbone, splits.shape, len(splits.class_names))
    return macs_of(dense_of(stages), stages, splits.shape[0])


def _sites(method: Any) -> Sites:
    found = next(entry for entry in METHODS.values() if entry.settings is type(method))
    layer = found.layer
    if layer is None:
        return Sites()
    if found.site == "weights":
        return Sites(weights=lambda linear: layer(method, linear))
    place = lambda: layer(method)  # noqa: E731  # one factory for whichever site the method names
    return Sites(maps=place) if found.site == "maps" else Sites(nodes=place)


def _plain_state(trained: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained values under the names of the plain network; wrapped linear layers are found inside."""
    inside = {name: f"{name.rpartition('.')[0]}.linear.{name.rpartition('.')[2]}" for name in plain}
    return {name: trained[name] if name in trained else trained[inside[name]] for name in plain}


def _split_epochs(
    training: TrainingSettings, distillation: DistillationSettings
) -> tuple[TrainingSettings, TrainingSettings]:
    learning = min(training.epochs - 1, max(1, round(training.epochs * distillation.learn_share)))
    return (
        replace(training, epochs=learning),
        replace(
            training,
            epochs=training.epochs - learning,
            learning_rate=training.learning_rate * distillation.learning_rate_scale,
        ),
    )


def _equality(
    masked: Blockout, distilled: Distilled, branched: BranchedNetwork, images: Tensor
) -> dict[str, dict[str, float]]:
    found = {}
    for dtype, bound in TOLERANCE.items():
        difference = largest_difference(masked, distilled, branched, images.cpu().to(dtype))
        found[str(dtype).removeprefix("torch.")] = {"max_abs_difference": difference, "bound": bound}
    return found


def _accuracy_under(
    masked: Blockout, memberships: Mapping[str, Tensor], loader: Loader, device: str | torch.device
) -> float:
    hits = 0
    with torch.no_grad():
        for x, y in loader.batches():
            hits += int((masked.with_memberships(x.to(device), memberships).argmax(1) == y.to(device)).sum())
    return hits / len(loader)
