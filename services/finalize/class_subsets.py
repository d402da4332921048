"""Exporting a winner cut to some of its classes: what only the others need is left out, nothing is trained again."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nas_blockout.data import Loader, Splits
from nas_blockout.experiment import EVALUATION_BATCH, count_macs, subset_of
from nas_blockout.export import ModelDescription
from nas_blockout.structure.branching import structure_of

_MOST_LABELS_IN_NAME = 12


def labels_of(wanted: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of classes that are given by name, or by label where no class is called so.

    Raises:
        ValueError: There is no such class.
    """
    named = {name: label for label, name in reversed(list(enumerate(class_names)))}
    found = []
    for text in wanted:
        label = named.get(text, int(text) if text.isdecimal() else -1)
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"no class {text!r}: give names, such as {class_names[0]!r}, or labels 0 to {len(class_names) - 1}"
            )
        found.append(label)
    return tuple(found)


def folder_name(arm: str, labels: Sequence[int]) -> str:
    """Return what the folder of an arm's model for some classes is called; other classes or another order, another."""
    told = "-".join(map(str, labels))
    if len(labels) > _MOST_LABELS_IN_NAME:
        told = f"{len(labels)}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return f"{arm}-classes-{told}"


def cut(
    model: nn.Module, whole: ModelDescription, splits: Splits, labels: Sequence[int]
) -> tuple[nn.Module, ModelDescription]:
    """Return what is left of a model for some of its classes, and its description.

    Args:
        model: Trained, in eval mode.
        whole: Its description.
        splits: The data; the images of these classes in the test split are classified.
        labels: In the order in which the logits are wanted.

    Raises:
        ValueError: The labels are no choice of classes, or the graph of the network cannot be traced.
    """
    subset = subset_of(model, splits.shape, len(splits.class_names), labels)  # type: ignore[arg-type]
    accuracy, images = _accuracy(subset.network, splits, labels)
    architecture = subset.architecture
    description = replace(
        whole,
        name=folder_name(whole.name, labels),
        class_names=tuple(splits.class_names[label] for label in labels),
        parameters=sum(parameter.numel() for parameter in subset.network.parameters()),
        macs=count_macs(subset.network, torch.zeros(1, *splits.shape)),
        test_accuracy=accuracy,
        test_images=images,
        accuracy=f"not measured for these classes; of all {len(splits.class_names)} classes {whole.accuracy}",
        architecture=None if architecture is None else architecture.to_json(),
        structure=None if architecture is None else structure_of(architecture, inputs=splits.shape[0]),
        branches=None,
        memberships=None,
        recommendation=(),
        latency=None,
        origin=None,
        cut_from={
            "name": whole.name,
            "classes": len(splits.class_names),
            "parameters": whole.parameters,
            "macs": whole.macs,
            "equality": subset.equality,
        },
    )
    return subset.network, description


def told(description: ModelDescription, folder: Path) -> str:
    """Return in one line what a model for some classes costs beside the whole one."""
    whole = description.cut_from or {}
    return (
        f"{folder}: {len(description.class_names)} of {whole['classes']} classes, {description.parameters:,} of "
        f"{whole['parameters']:,} parameters, {description.macs:,} of {whole['macs']:,} multiply-accumulates, "
        f"{description.test_accuracy:.2%} of the {description.test_images:,} test images of these classes"
    )


def _accuracy(model: nn.Module, splits: Splits, labels: Sequence[int]) -> tuple[float, int]:
    """Return how many of the test images of some classes are told from each other, and how many there are."""
    place = torch.full((len(splits.class_names),), -1)
    place[list(labels)] = torch.arange(len(labels))
    right = images = 0
    with torch.no_grad():
        for x, y in Loader(splits.test(), EVALUATION_BATCH).batches():
            wanted = place[y]
            chosen = wanted >= 0
            images += int(chosen.sum())
            if chosen.any():
                right += int((model(x[chosen]).argmax(1) == wanted[chosen]).sum())
    return right / max(1, images), images
