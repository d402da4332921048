"""An exported model of a study: its accuracy and cost, its architecture as a picture, and the module itself."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import name_of, runs_code_of_others
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.data.arrays.image_arrays import images_of
from nas_blockout.experiment import Experiment, load_model
from nas_blockout.export import Deployed, ExportedModel
from nas_blockout.interactive.drawn_architecture import DrawnArchitecture
from nas_blockout.interactive.html_text import heading, table
from services.analysis.comparison import ArmResult

_IMAGES_AT_ONCE = 512


@dataclass(frozen=True)
class StudyModel:
    """The exported model of an arm.

    Args:
        arm: Its arm.
        folder: Where it was exported to.
        result: What the comparison says of the arm.
        experiment: Of the arm, before its search.
    """

    arm: str
    folder: Path
    result: ArmResult
    experiment: Experiment

    @cached_property
    def model(self) -> Deployed:
        """The trained module, in eval mode: logits from images in [0, 1], shape ``(n, channels, height, width)``.

        Raises:
            VerificationError: The folder is not as it was written, or the network cannot be built any more.
        """
        backbone = self.experiment.backbone
        # The study itself names the code, which has run already: no folder chooses what is imported.
        factory = (
            backbone.factory
            if isinstance(backbone, ModuleSettings)
            else name_of(backbone)
            if runs_code_of_others(backbone)
            else None
        )
        return load_model(self.folder, factory=factory)

    @cached_property
    def _exported(self) -> ExportedModel:
        return ExportedModel.open(self.folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self._exported.class_names)

    @property
    def architecture(self) -> DrawnArchitecture | None:
        """Groups and branches; None for a network that is not built from any."""
        document = self._exported.json("architecture.json")
        return DrawnArchitecture(Architecture.from_json(document), self.class_names) if document else None

    @property
    def test_accuracy(self) -> float | None:
        """Mean over the seeds of the arm, in [0, 1]; None if it was not measured."""
        found = self.result.test_accuracy
        return found.mean if found is not None else None

    @torch.no_grad()
    def predict(self, images: Any) -> list[str]:
        """Return the name of the most probable class of each image.

        Args:
            images: In a form that `nas_blockout.ArrayData` takes, of the size that was trained on.

        Raises:
            DataUnsuitable: They are refused.
        """
        values = images_of(images, split="images", channels=None, in_unit_range=True)
        values = values.float().div(255) if values.dtype == torch.uint8 else values
        names = self.class_names
        logits = torch.cat([self.model(part) for part in values.split(_IMAGES_AT_ONCE)])
        return [names[number] for number in logits.argmax(1).tolist()]

    def __str__(self) -> str:
        accuracy = f"test accuracy {self.test_accuracy:.2%}" if self.test_accuracy is not None else "not tested"
        return f"{self.arm}: {accuracy}, {self.result.macs or 0:,} MACs, {self.result.parameters or 0:,} parameters"

    def __repr__(self) -> str:
        return f"<StudyModel {self}; {self.folder}>"

    def _repr_html_(self) -> str:
        """Return accuracy, costs, place and architecture as HTML."""
        drawn = self.architecture
        files = table(("file", "bytes"), [(path.name, path.stat().st_size) for path in sorted(self.folder.iterdir())])
        return (
            heading(str(self), details=[str(self.folder)]) + (drawn._repr_html_() if drawn is not None else "") + files
        )
