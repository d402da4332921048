"""What is learned from one network: the derived one, its costs beside those of the given one, how it came about."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas_blockout.architecture import Architecture
from nas_blockout.atomic_files import whole_folder, write_text
from nas_blockout.data import Preprocessing
from nas_blockout.data.arrays.image_arrays import images_of
from nas_blockout.experiment import Experiment, derived_network, origin_of, structure_of_network
from nas_blockout.export import Deployed, ModelDescription, Verification, export_model, load_weights, save_weights
from nas_blockout.interactive.drawn_architecture import DrawnArchitecture, layers_table
from nas_blockout.interactive.given_networks import given
from nas_blockout.interactive.html_text import heading, table
from nas_blockout.structure.branching import summary

STRUCTURE, WEIGHTS = "structure.json", "weights.safetensors"
SCHEMA_VERSION = 1
_IMAGES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network costs, and how good it is.

    Args:
        macs: Multiply-accumulates an image.
        parameters: Trainable parameters.
        validation_accuracy: In [0, 1].
        test_accuracy: In [0, 1]; None where no test images were given, and of a given network.
    """

    macs: int
    parameters: int
    validation_accuracy: float
    test_accuracy: float | None = None


@dataclass(frozen=True)
class LearnedNetwork:
    """A network derived from one that was given.

    Attributes:
        network: Takes images normalized by `preprocessing`; in eval mode.
        architecture: Its groups and branches, which a notebook draws.
        before: What the given network costs, and how good its weights were.
        after: The same of `network`.
        class_names: In the order of the logits.
        preprocessing: How images are normalized before the network.
        history: A row for each epoch: stage, losses, validation accuracy, seconds.
        notes: What should be known of how it came about, one sentence each.
        experiment: What was run.
        given_name: Class of the given network, by module and name.
        train_images: Images that it was trained on.
        equality: How far the derived network was from the masked one before it was trained on, by precision.
        takes_unit_range: Whether images as they were given lie in [0, 1].
    """

    network: nn.Module
    architecture: DrawnArchitecture
    before: Measured
    after: Measured
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    history: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    experiment: Experiment
    given_name: str
    train_images: int
    equality: Mapping[str, Any] = field(default_factory=dict)
    takes_unit_range: bool = True

    @property
    def model(self) -> nn.Module:
        """The network as a plain module: logits from images as they were given, bytes as floats in [0, 1]."""
        asked = self.preprocessing
        if not any(asked.mean) and set(asked.std) == {1.0}:
            return self.network
        device = next(self.network.parameters()).device
        return Deployed(self.network, asked.mean, asked.std).to(device).eval()

    @property
    def validation_accuracy(self) -> float:
        """Share of the validation images that are classified as labeled, in [0, 1]."""
        return self.after.validation_accuracy

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Layers as rows, for a data frame: nodes before and after, groups, share of connections kept."""
        return self.architecture.layers

    @torch.no_grad()
    def predict_proba(self, images: Any) -> Tensor:
        """Return the probability of every class, shape ``(n, classes)``.

        Args:
            images: In a form that `nas_blockout.ArrayData` takes, of the size that was trained on.

        Raises:
            DataUnsuitable: They are refused.
        """
        values = images_of(images, split="images", channels=None, in_unit_range=self.takes_unit_range)
        values = values.float().div(255) if values.dtype == torch.uint8 else values
        model = self.model.eval()
        device = next(model.parameters()).device
        return torch.cat([model(part.to(device)).softmax(1).cpu() for part in values.split(_IMAGES_AT_ONCE)])

    def predict(self, images: Any) -> list[str]:
        """Return the name of the most probable class of each image; see `predict_proba`."""
        return [self.class_names[number] for number in self.predict_proba(images).argmax(1).tolist()]

    def save(self, folder: Path | str) -> Path:
        """Write weights, architecture and how they came about into a folder, whole or not at all; return it.

        What is there is replaced. `load` reads it back with the network that was given.
        """
        path = Path(folder)
        with whole_folder(path) as part:
            save_weights(self.network, part / WEIGHTS)
            write_text(part / STRUCTURE, json.dumps(self._document(), indent=2) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path | str, network: nn.Module) -> "LearnedNetwork":
        """Read back what `save` wrote.

        Args:
            folder: Of `save`; only numbers and texts are read from it.
            network: The one that was given, or another of the same layers; its weights do not matter.

        Raises:
            ValueError: The folder holds no such network, or it was derived from one of other layers.
        """
        path = Path(folder)
        try:
            document = json.loads((path / STRUCTURE).read_text(encoding="utf-8"))
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {document['schema_version']}, this program reads {SCHEMA_VERSION}")
            return cls._read(path, document, network)
        except FileNotFoundError:
            raise ValueError(f"{path} holds no saved network: there is no {STRUCTURE}") from None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}/{STRUCTURE} is not what was saved: {type(error).__name__}: {error}") from error

    @classmethod
    def _read(cls, path: Path, document: Mapping[str, Any], network: nn.Module) -> "LearnedNetwork":
        preprocessing = Preprocessing.from_json(document["preprocessing"])
        architecture = Architecture.from_json(document["architecture"])
        names = tuple(document["class_names"])
        shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
        with given(network) as factory:
            experiment = Experiment.from_json(
                {**document["experiment"], "backbone": {**document["experiment"]["backbone"], "factory": factory}}
            )
            derived = derived_network(
                experiment, architecture, shape=shape, classes=len(names), graph_hash=document["graph_hash"]
            )
        load_weights(derived, path / WEIGHTS)
        return cls(
            derived.eval(),
            DrawnArchitecture(architecture, names, structure_of_network(derived)),
            Measured(**document["before"]),
            Measured(**document["after"]),
            names,
            preprocessing,
            tuple(document["history"]),
            tuple(document["notes"]),
            experiment,
            document["given_name"],
            document["train_images"],
            document["equality"],
            document["takes_unit_range"],
        )

    def _document(self) -> dict[str, Any]:
        experiment = self.experiment.to_json()
        return {
            "schema_version": SCHEMA_VERSION,
            "given_name": self.given_name,
            "graph_hash": getattr(getattr(self.network, "whole", None), "graph_hash", None),
            "experiment": {**experiment, "backbone": {**experiment["backbone"], "factory": self._factory}},
            "architecture": self.architecture.to_json(),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "before": {name: getattr(self.before, name) for name in Measured.__slots__},
            "after": {name: getattr(self.after, name) for name in Measured.__slots__},
            "history": [dict(row) for row in self.history],
            "notes": list(self.notes),
            "train_images": self.train_images,
            "equality": {name: dict(each) for name, each in self.equality.items()},
            "takes_unit_range": self.takes_unit_range,
        }

    @property
    def _factory(self) -> str:
        """The class of the given network in the form of a factory; its arguments are not known."""
        module, _, name = self.given_name.rpartition(".")
        return f"{module}:{name}"

    def export(self, folder: Path | str, *, name: str | None = None) -> Verification:
        """Write `model.pt2`, `model.onnx`, weights and a card, each verified in a fresh process; see the guide.

        Args:
            folder: What is there is replaced, once everything is verified.
            name: Of the model; None for the name of the folder.

        Raises:
            ValueError: The images that were trained on do not lie in [0, 1].
            VerificationError: A form does not compute what the network does; the folder is left as it was.
        """
        if not self.takes_unit_range:
            raise ValueError(
                "an exported model takes images in [0, 1] and normalizes them itself: learn from such images, with "
                "normalize=(mean, std) as they are normalized now"
            )
        path = Path(folder)
        return export_model(self.network, path, self._description(name or path.name))

    def _description(self, name: str) -> ModelDescription:
        asked, structure = self.preprocessing, structure_of_network(self.network)
        return ModelDescription(
            name=name,
            study="none: one network, learned in Python",
            question="",
            data="arrays",
            train_images=self.train_images,
            class_names=self.class_names,
            channels=asked.channels,
            height=asked.height,
            width=asked.width,
            mean=asked.mean,
            std=asked.std,
            parameters=self.after.parameters,
            macs=self.after.macs,
            seed=self.experiment.seed,
            test_accuracy=self.after.test_accuracy,
            test_images=None,
            accuracy=f"{self.after.validation_accuracy:.2%} of the validation images, by which it was chosen",
            verdict="nothing was compared: one network was learned",
            spent=f"{self.history[-1]['sample_passes']:,} sample passes" if self.history else "not recorded",
            structure=structure,
            branches=summary(structure, learned=True) if structure is not None else None,
            architecture=self.architecture.to_json(),
            equality=self.equality or None,
            background="black",
            origin=self._origin(),
        )

    def _origin(self) -> dict[str, Any] | None:
        backbone = self.experiment.backbone
        if not hasattr(backbone, "factory"):
            return origin_of(self.experiment, self.network)
        named = replace(self.experiment, backbone=replace(backbone, factory=self._factory))
        return origin_of(named, self.network)

    def _rows(self) -> list[Sequence[Any]]:
        rows: list[Sequence[Any]] = [
            ("MACs an image", self.before.macs, self.after.macs),
            ("parameters", self.before.parameters, self.after.parameters),
            ("validation accuracy", f"{self.before.validation_accuracy:.2%}", f"{self.after.validation_accuracy:.2%}"),
        ]
        if self.after.test_accuracy is not None:
            rows.append(("test accuracy", "-", f"{self.after.test_accuracy:.2%}"))
        return rows

    def __str__(self) -> str:
        share = self.after.macs / self.before.macs
        return (
            f"{self.given_name.rpartition('.')[2]}: {self.after.macs:,} of {self.before.macs:,} MACs ({share:.0%}), "
            f"validation accuracy {self.after.validation_accuracy:.2%}; {self.architecture}"
        )

    def __repr__(self) -> str:
        return f"<LearnedNetwork {self}>"

    def _repr_html_(self) -> str:
        """Return costs, layers and branches as HTML."""
        tables = table(("", "given", "learned"), self._rows()) + layers_table(self.layers)
        return heading(str(self), details=self.notes) + tables
