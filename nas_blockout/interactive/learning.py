"""The structure of one network, learned without a study: no search, no database, no other process."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypedDict, Unpack, get_type_hints

import torch
from torch import nn

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.data import AnyPart, ArrayData, DataSettings, Loader, Preprocessing, Splits
from nas_blockout.data.arrays.image_arrays import Channels
from nas_blockout.experiment import (
    EVALUATION_BATCH,
    Experiment,
    Outcome,
    Run,
    backbone_from_json,
    build,
    count_macs,
    outline,
    structure_of_network,
)
from nas_blockout.interactive.drawn_architecture import DrawnArchitecture
from nas_blockout.interactive.given_networks import given
from nas_blockout.interactive.learned_network import LearnedNetwork, Measured
from nas_blockout.interactive.progress_line import ProgressLine
from nas_blockout.methods.memberships.blockout_settings import PRETRAINED, BlockoutSettings
from nas_blockout.serialization import from_json, near, to_json
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.training import EpochRecord, TrainingSettings, evaluate

# Weights are taken as trained where they leave at most this share of the errors of always naming the commonest class.
TRAINED = 0.8


class LearningError(RuntimeError):
    """A training that cannot go on, such as one whose loss is no number any more."""


class LearningOptions(TypedDict, total=False):
    """What may be said beside the arguments of `learn_structure`, all by keyword.

    Attributes:
        seed: Of the order of the images and all draws; 0 if left out.
        batch_size: Images a step, 2 or more; 64.
        learning_rate: Peak learning rate, above 0; 0.002.
        pretrained: Whether the weights are trained, by which the settings of the method are chosen; left out to tell it
            by the validation accuracy.
        normalize: ``measured`` to normalize by mean and standard deviation of the training images, or a pair ``(mean,
            std)`` of one number a channel; left out to give the network the images as they are.
        augment: Augmentation of training images, as in a study; ``none``.
        test: Images that are looked at once, at the end, in the form of `train`.
        class_names: As of `nas_blockout.ArrayData`.
        channels: As of `nas_blockout.ArrayData`.
        classes_layer: Name of the linear layer that gives the logits, if it cannot be found.
        training: Further settings of the training by name, as in a study.
        method: Settings of Blockout that are changed, by name, as in a study.
        distillation: Settings of the distillation that are changed, by name, as in a study.
    """

    seed: int
    batch_size: int
    learning_rate: float
    pretrained: bool
    normalize: str | tuple[Sequence[float], Sequence[float]]
    augment: str
    test: Any
    class_names: Sequence[str]
    channels: Channels
    classes_layer: str
    training: Mapping[str, Any]
    method: Mapping[str, Any]
    distillation: Mapping[str, Any]


def learn_structure(
    model: nn.Module | str | Mapping[str, Any],
    train: Any,
    validation: Any = None,
    *,
    target: float = 0.5,
    epochs: int = 10,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Unpack[LearningOptions],
) -> LearnedNetwork:
    """Learn which nodes and connections of a network to keep, derive the smaller network, and train it on.

    Half of the epochs learn the structure by Blockout, the other half train what was derived. The given network stays
    as it is: what is trained is a copy with its weights. Nothing is written.

    Args:
        model: Any module that takes a batch of images ``(n, channels, height, width)`` and returns logits, whose graph
            can be traced; or the name of a built-in backbone, or its settings with the name.
        train: Images to train on with their labels, in any form that `nas_blockout.ArrayData` takes, or an `ArrayData`
            with all splits. The network is given floats as they are, and bytes as floats in [0, 1].
        validation: Images that every choice is made on; None to take a fifth of those to train on.
        target: Largest share of the given network's multiply-accumulates that is left, in (0, 1].
        epochs: Passes over the training images, 2 or more, of both stages together.
        device: Where to train; None for where the network is.
        progress: Whether a line says how far it is.
        options: See `LearningOptions`.

    Returns:
        The derived network with its costs, its layers and how it came about; it can be saved and exported.

    Raises:
        DataUnsuitable: Images or labels are refused.
        ValueError: The network does not take these images or cannot be traced, the target cannot be reached, or a
            setting is refused; the message says which.
        LearningError: The training diverged.
    """
    if unknown := sorted(set(options) - set(get_type_hints(LearningOptions))):
        raise TypeError(f"learn_structure takes no {unknown[0]!r}; {near(unknown[0], get_type_hints(LearningOptions))}")
    data = _data(train, validation, options)
    splits = _splits(data, options)
    with ExitStack() as stack:
        backbone = _backbone(model, stack, options)
        plain = Experiment(
            _data_settings(data, options), backbone, training=_training(epochs, options), seed=_seed(options)
        )
        where = torch.device(device) if device is not None else _device_of(model)
        before = _before(plain, splits, where)
        experiment, notes = _learning(plain, splits, before, target=target, options=options)
        run = Run(experiment, splits, device=where)
        with ProgressLine(enabled=progress) as line:
            for record in run:
                line.show(_told(record, epochs))
        if run.outcome is None:
            raise LearningError(f"the training cannot go on: {run.failure}; lower learning_rate")
    return _learned(run.outcome, before, splits, data, run, notes=notes, model=model)


def _data(train: Any, validation: Any, options: LearningOptions) -> ArrayData:
    if isinstance(train, ArrayData):
        if validation is not None or "test" in options:
            raise ValueError("give validation and test images to the ArrayData, which has all splits")
        return train
    names, channels = options.get("class_names"), options.get("channels")
    splits = {"train": train, "validation": validation, "test": options.get("test")}
    if isinstance(train, Mapping):
        splits = {
            **train,
            **{name: source for name, source in splits.items() if name != "train" and source is not None},
        }
    return ArrayData(splits, class_names=names, channels=channels, in_unit_range=False)


def _splits(data: ArrayData, options: LearningOptions) -> Splits:
    normalize, (channels, height, width) = options.get("normalize"), data.shape
    if normalize == "measured":
        return data.splits(split_seed=_seed(options), needs_test=False)
    if isinstance(normalize, str):
        raise ValueError(f"normalize must be 'measured' or (mean, std), got {normalize!r}")
    mean, std = normalize if normalize is not None else ((0.0,) * channels, (1.0,) * channels)
    given_by = Preprocessing(channels, height, width, tuple(map(float, mean)), tuple(map(float, std)))
    return data.splits(split_seed=_seed(options), preprocessing=given_by, needs_test=False)


def _seed(options: LearningOptions) -> int:
    return options.get("seed", 0)


def _backbone(model: nn.Module | str | Mapping[str, Any], stack: ExitStack, options: LearningOptions) -> Any:
    if isinstance(model, nn.Module):
        return ModuleSettings(stack.enter_context(given(model)), classes_layer=options.get("classes_layer"))
    if isinstance(model, str | Mapping):
        return backbone_from_json({"name": model} if isinstance(model, str) else model)
    raise TypeError(f"model must be an nn.Module, or a backbone by name or settings, got {type(model).__name__}")


def _data_settings(data: ArrayData, options: LearningOptions) -> DataSettings:
    return data.settings(augment=options.get("augment", "none"), split_seed=_seed(options))


def _training(epochs: int, options: LearningOptions) -> TrainingSettings:
    named = {"batch_size": options.get("batch_size"), "learning_rate": options.get("learning_rate")}
    given_ones = {key: value for key, value in named.items() if value is not None}
    return from_json(
        TrainingSettings, {"epochs": epochs, **given_ones, **options.get("training", {})}, where="training"
    )


def _device_of(model: Any) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None or parameter.device.type == "meta" else parameter.device


@torch.no_grad()
def _before(plain: Experiment, splits: Splits, device: torch.device) -> Measured:
    network = build(plain, splits).to(device).eval()
    image = splits.train.gather([torch.zeros(1, dtype=torch.int64)])
    macs = count_macs(network, next(iter(image))[0].clone().to(device))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Measured(macs, parameters, _accuracy(network, splits.validation, device))


def _accuracy(network: nn.Module, part: AnyPart, device: torch.device) -> float:
    return evaluate(network, Loader(part, EVALUATION_BATCH), device=device).accuracy


def _learning(
    plain: Experiment, splits: Splits, before: Measured, *, target: float, options: LearningOptions
) -> tuple[Experiment, tuple[str, ...]]:
    """Return what is run: with the settings for trained or for new weights, and what is to be known of that."""
    counts = splits.validation.labels.bincount()
    commonest = float(counts.max() / counts.sum())
    trained = 1 - before.validation_accuracy <= TRAINED * (1 - commonest)
    told = options.get("pretrained")
    if told is None:
        kind = "trained" if trained else "new"
        note = f"the given weights classify {before.validation_accuracy:.1%} of the validation images: taken as {kind}"
    else:
        note = f"the given weights are taken as {'trained' if told else 'new'}, as pretrained={told} says"
    preset = PRETRAINED if (trained if told is None else told) else BlockoutSettings()
    # Of few classes there are no more clusters than classes, and likewise of any other narrow layer.
    narrowest = min(outline(plain.backbone, splits.shape, len(splits.class_names)).layers.values())
    clusters = min(preset.clusters, narrowest)
    method = {**to_json(preset), "clusters": clusters, "cost_target": target, **options.get("method", {})}
    distillation = {"target_macs": target, "draws": 1, **options.get("distillation", {})}
    experiment = replace(
        plain,
        method=from_json(BlockoutSettings, method, where="method"),
        distillation=from_json(DistillationSettings, distillation, where="distillation"),
    )
    return experiment, (note,)


def _told(record: EpochRecord, epochs: int) -> str:
    done, accuracy = record.epoch + 1, record.validation_accuracy
    left = record.seconds / done * (epochs - done)
    stage = {"learn": "learning the structure", "finetune": "training the derived network"}.get(
        record.stage, record.stage
    )
    shown = f"validation accuracy {accuracy:.1%}" if accuracy is not None else "diverged"
    return f"epoch {done}/{epochs}, {stage}: {shown}, {record.seconds:.0f} s" + (
        f", about {left:.0f} s left" if left else ""
    )


def _learned(
    outcome: Outcome,
    before: Measured,
    splits: Splits,
    data: ArrayData,
    run: Run,
    *,
    notes: tuple[str, ...],
    model: nn.Module | str | Mapping[str, Any],
) -> LearnedNetwork:
    assert outcome.architecture is not None, "derived"
    assert outcome.derivation is not None
    network, names = outcome.model.eval(), splits.class_names
    device = torch.device(run.device)
    validated = _accuracy(network, splits.validation, device)
    tested = _accuracy(network, splits.test(), device) if "test" in data.parts else None
    after = Measured(outcome.macs, outcome.parameters, validated, tested)
    kind = type(model)
    given_name = (
        f"{kind.__module__}.{kind.__name__}" if isinstance(model, nn.Module) else f"nas_blockout.{_name(model)}"
    )
    return LearnedNetwork(
        network,
        DrawnArchitecture(outcome.architecture, names, structure_of_network(network)),
        before,
        after,
        names,
        splits.preprocessing,
        tuple(record.to_json() for record in run.records),
        (*notes, *splits.notes, *_notes_of(network)),
        run.experiment,
        given_name,
        len(splits.train),
        outcome.derivation.equality,
        _in_unit_range(data),
    )


def _name(model: str | Mapping[str, Any] | nn.Module) -> str:
    return model if isinstance(model, str) else str(model["name"]) if isinstance(model, Mapping) else ""


def _notes_of(network: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(network, "notes", ()))


def _in_unit_range(data: ArrayData) -> bool:
    images = data.parts["train"].images
    return images.dtype == torch.uint8 or bool(images.min() >= 0 and images.max() <= 1)
