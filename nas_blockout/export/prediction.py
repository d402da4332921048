"""Use of an exported model: its files are checked by their hashes, then one form is loaded from those very bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load
from torch import Tensor, nn

from nas_blockout.export.subprocess_check import BOUND, PREPROCESSING, REFERENCE, load_onnx, load_program
from nas_blockout.export.verification import MANIFEST, VerificationError, check_files
from nas_blockout.statistics.novelty import is_unlike

Form = Literal["pt2", "onnx"]
_IMAGES = 64  # at a time


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of images.

    Args:
        probabilities: Shape ``(batch, classes)``: the softmax of the logits, divided by the model's temperature if it
            has one.
        calibrated: Whether it has one.
        unlike: Shape ``(batch,)``, boolean: which images are less like the validation images than nearly all of them;
            None where that is not known.
        quantile: The share of the validation images that are as unlike; None likewise.
    """

    probabilities: Tensor
    calibrated: bool
    unlike: Tensor | None
    quantile: float | None


@dataclass(frozen=True)
class ExportedModel:
    """A folder of an exported model whose files are those that were written.

    Args:
        folder: Of the model.
        files: SHA-256 of every file.
        manifest: Content of ``verification.json``.
    """

    folder: Path
    files: Mapping[str, str]
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "ExportedModel":
        """Check the files of a folder by their hashes.

        Raises:
            VerificationError: A file is missing or changed, or the folder holds no exported model.
        """
        files, findings = check_files(folder)
        if findings:
            raise VerificationError(f"{folder}: {'; '.join(findings)}")
        return cls(folder, files, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """Size and channels of the images, names of the classes."""
        return self.json(PREPROCESSING)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the logits."""
        return [str(name) for name in self.preprocessing["class_names"]]

    def content(self, name: str) -> bytes:
        """Return the bytes of a file, which are those that were hashed.

        Raises:
            VerificationError: There is no such file, or it has been changed meanwhile.
        """
        if name not in self.files:
            raise VerificationError(f"{self.folder} has no {name}: {self.manifest.get('skipped', {}).get(name, '')}")
        data = (self.folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise VerificationError(f"{self.folder / name} has been changed while it was read: export the model again")
        return data

    def json(self, name: str) -> dict[str, Any]:
        """Return the document in a file, as of `content`."""
        document: dict[str, Any] = json.loads(self.content(name))
        return document

    @torch.no_grad()
    def is_computed_by(self, network: nn.Module) -> bool:
        """Whether a network in eval mode gives the recorded logits of the recorded images, as `verify` asks of forms.

        Args:
            network: Takes images in [0, 1].
        """
        recorded = load(self.content(REFERENCE))
        logits = torch.cat([network(part) for part in recorded["images"].split(_IMAGES)])
        bound = BOUND * max(1.0, float(recorded["logits"].abs().max()))
        return logits.shape == recorded["logits"].shape and bool((logits - recorded["logits"]).abs().max() <= bound)

    def predict(self, images: Tensor, *, form: Form = "pt2") -> Prediction:
        """Return the probabilities of the classes, and which images are unlike those of validation.

        Args:
            images: As of `logits`.
            form: As of `logits`.

        Raises:
            VerificationError: As of `logits`.
        """
        logits = self.logits(images, form=form)
        known = self.preprocessing.get("probabilities", {})
        temperature, novelty = known.get("temperature"), known.get("novelty")
        return Prediction(
            (logits / (temperature or 1.0)).softmax(1),
            temperature is not None,
            None if novelty is None else is_unlike(logits, images, novelty),
            None if novelty is None else novelty["quantile"],
        )

    @torch.no_grad()
    def logits(self, images: Tensor, *, form: Form = "pt2") -> Tensor:
        """Return the logits of images, shape ``(batch, classes)``.

        Args:
            images: Shape ``(batch, channels, height, width)``, float32 in [0, 1].
            form: ``pt2`` for the program of PyTorch, ``onnx`` for onnxruntime.

        Raises:
            VerificationError: The form cannot be loaded: it is not there, or holds more than a computation.
        """
        if form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {form!r}")
        content = self.content(f"model.{form}")
        try:
            run = load_program(content).module() if form == "pt2" else load_onnx(content)
        except ModuleNotFoundError as error:
            raise VerificationError(f"model.{form} needs {error.name}: pip install {error.name}") from None
        except Exception as error:
            raise VerificationError(f"{self.folder}/model.{form} cannot be used: {error}") from error
        logits: Tensor = run(images)
        return logits
