"""An experiment: one training, fully described, as a value that JSON carries."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from nas_blockout.architecture import Architecture
from nas_blockout.backbones import (
    backbone_named,
    backbone_of,
    name_of,
    require_blocks,
    require_hidden_layer,
    require_masked,
    require_site,
)
from nas_blockout.backbones.convnet import ConvNetSettings
from nas_blockout.data import DataSettings
from nas_blockout.methods import NoneSettings, method_from_json, method_name, method_of, method_to_json
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.serialization import from_json, near, to_json
from nas_blockout.settings_fields import Conflict, refuse
from nas_blockout.structure.confusion import ConfusionSettings
from nas_blockout.structure.distill import DistillationSettings
from nas_blockout.structure.pruning import PruningSettings
from nas_blockout.training import TrainingSettings

DERIVATIONS: Mapping[str, Any] = MappingProxyType(
    {"distillation": DistillationSettings, "pruning": PruningSettings, "confusion": ConfusionSettings}
)


_LEARNING = BlockoutSettings | DartsSettings  # methods that learn which nodes share a branch
_OF_GRAPHS = ("architecture", *DERIVATIONS, "target_macs")  # what removes or separates nodes


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
        distillation: How a learned structure becomes a branched network; None to keep what was trained, folded.
        pruning: How the dense network, once trained, becomes a narrower one; None to keep it.
        confusion: How the dense network's confusions become branches; None for none.
        target_macs: Scale all widths by one factor to come near to these multiply-accumulates an image.
    """

    data: DataSettings = field(default_factory=DataSettings)
    backbone: Any = field(default_factory=ConvNetSettings)
    method: Any = field(default_factory=NoneSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    architecture: Architecture | None = None
    distillation: DistillationSettings | None = None
    pruning: PruningSettings | None = None
    confusion: ConfusionSettings | None = None
    target_macs: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        refuse(conflicts(self))

    def _check_types(self) -> None:
        """Refuse what would fail much later, in words that say nothing of an experiment.

        Raises:
            ValueError: A field has another type than it must have.
        """
        name_of(self.backbone)
        method_name(self.method)
        optional: dict[str, type] = {"architecture": Architecture, "target_macs": int, **DERIVATIONS}
        for name, kind in {"data": DataSettings, "training": TrainingSettings, "seed": int, **optional}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or (not isinstance(value, kind) and not (name in optional and value is None)):
                expected = "a whole number" if kind is int else f"of type {kind.__name__}"
                raise ValueError(f"{name} must be {expected}{' or None' * (name in optional)}, got {value!r}")
        if self.target_macs is not None and self.target_macs < 1:
            raise ValueError(f"target_macs must be at least 1, got target_macs={self.target_macs}")

    @property
    def derivation(self) -> DistillationSettings | PruningSettings | ConfusionSettings | None:
        """What turns the network of the first stage into that of the second; None for a training of one stage."""
        return self.distillation or self.pruning or self.confusion

    def to_json(self) -> dict[str, Any]:
        """Return the experiment as plain JSON types."""
        return {
            "data": to_json(self.data),
            "backbone": {"name": name_of(self.backbone), **to_json(self.backbone)},
            "method": method_to_json(self.method),
            "training": to_json(self.training),
            "seed": self.seed,
            "architecture": self.architecture.to_json() if self.architecture else None,
            **{name: to_json(getattr(self, name)) if getattr(self, name) else None for name in DERIVATIONS},
            "target_macs": self.target_macs,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Experiment":
        """Read an experiment back.

        Raises:
            ValueError: A key is unknown, a value has the wrong type or is refused; the message names it.
        """
        values = _mapping(document, "experiment", {"seed": 0})
        architecture = values.pop("architecture", None)
        derivations = {name: (kind, values.pop(name, None)) for name, kind in DERIVATIONS.items()}
        experiment = cls(
            data=from_json(DataSettings, values.pop("data", {}), where="data"),
            backbone=backbone_from_json(values.pop("backbone", {"name": "convnet"})),
            method=method_from_json(values.pop("method", {"name": "none"})),
            training=from_json(TrainingSettings, values.pop("training", {}), where="training"),
            seed=int(values.pop("seed", 0)),
            architecture=Architecture.from_json(architecture) if architecture else None,
            target_macs=values.pop("target_macs", None),
            **{
                name: None if document is None else from_json(kind, document, where=name)
                for name, (kind, document) in derivations.items()
            },
        )
        if values:
            raise ValueError(
                f"experiment: unknown key {next(iter(values))!r}; {near(next(iter(values)), cls.__slots__)}"
            )
        return experiment


class Parts(Protocol):
    """What `conflicts` compares: the parts of an experiment, which may not exist yet because they do not fit."""

    @property
    def backbone(self) -> Any:
        """Settings of a registered backbone."""

    @property
    def method(self) -> Any:
        """Settings of a registered method."""

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""

    @property
    def architecture(self) -> Architecture | None:
        """Branches of the network."""

    @property
    def distillation(self) -> DistillationSettings | None:
        """How a learned structure becomes branches."""

    @property
    def pruning(self) -> PruningSettings | None:
        """How the dense network becomes a narrower one."""

    @property
    def confusion(self) -> ConfusionSettings | None:
        """How the dense network's confusions become branches."""

    @property
    def target_macs(self) -> int | None:
        """The cost to which all widths are scaled."""


def conflicts(parts: Parts) -> Iterator[Conflict]:
    """Yield every reason why parts do not make an experiment.

    Args:
        parts: An experiment, or its parts.

    Yields:
        Conflicts whose keys are those of `Experiment.to_json`, such as ``method.masked``.
    """
    yield from _unsuited_to_backbone(parts)
    yield from _unsuited_to_derivation(parts)
    yield from _unsuited_to_mixing(parts)
    if parts.architecture is not None and isinstance(parts.method, _LEARNING):
        message = f"the method {method_name(parts.method)} learns its own architecture: leave out architecture"
        yield Conflict(message, "architecture", "method.name")


def needs_graph(parts: Parts) -> bool:
    """Return whether the network is built through its graph, because its nodes are masked, removed or separated.

    A network of stages needs none. Others say themselves which layers the weights of their head connect, or all of
    their weights, which is enough where these are only masked.
    """
    backbone = backbone_of(parts.backbone)
    if backbone.stages is not None:
        return False
    if isinstance(parts.method, DartsSettings) or any(getattr(parts, name) is not None for name in _OF_GRAPHS):
        return True
    if not isinstance(parts.method, BlockoutSettings):
        return False
    if backbone.from_factory or backbone.masks_convolutions or parts.method.masked in ("head", "all"):
        return backbone.from_factory or (not backbone.masks_convolutions and parts.method.masked == "all")
    try:
        require_masked(parts.backbone, parts.method.masked)
    except ValueError:
        return True  # if these are layers of the graph, either
    return False


def _unsuited_to_backbone(parts: Parts) -> Iterator[Conflict]:
    graph = needs_graph(parts)
    if graph and not isinstance(parts.method, NoneSettings | BlockoutSettings | DartsSettings):
        given = next(name for name in _OF_GRAPHS if getattr(parts, name) is not None)
        name = method_name(parts.method)
        message = (
            f"method.name: on the backbone {name_of(parts.backbone)}, {given} goes with the methods none, blockout "
            f"and darts only, got {name}; take one of them, a backbone of stages such as convnet, or leave out {given}"
        )
        yield Conflict(message, "method.name", given, "backbone.name")
    if isinstance(parts.method, BlockDropSettings):
        needs_blocks = partial(require_blocks, parts.backbone, "the method blockdrop")
        yield from _refusal(needs_blocks, "method.name", "backbone.name")
    name, placement = method_name(parts.method), getattr(parts.method, "placement", None)
    enters = partial(require_site, parts.backbone, name, method_of(parts.method).site, placement)
    yield from _refusal(enters, "method.placement" if placement else "method.name", "method.name", "backbone.name")
    if placement == "hidden":
        needs_hidden = partial(require_hidden_layer, parts.backbone, method_name(parts.method))
        yield from _refusal(needs_hidden, "method.placement", "method.name", "backbone")
    if isinstance(parts.method, BlockoutSettings) and not graph:  # else the layers are known once the graph is
        branched = parts.distillation is not None
        masks = partial(require_masked, parts.backbone, parts.method.masked, branched=branched)
        yield from _refusal(masks, "method.masked", "method.name", "backbone", *["distillation"] * branched)


def _unsuited_to_derivation(parts: Parts) -> Iterator[Conflict]:
    learns = isinstance(parts.method, _LEARNING)
    derivations = [name for name in DERIVATIONS if getattr(parts, name) is not None]
    if len(derivations) > 1:
        message = (
            f"an experiment derives one network: set one of {', '.join(DERIVATIONS)}, got {' and '.join(derivations)}"
        )
        yield Conflict(message, *reversed(derivations))
    for name in derivations:
        if name == "distillation" and not learns:
            message = "distillation needs the method blockout or darts, whose memberships it turns into branches"
            yield Conflict(message, name, "method.name")
        if name != "distillation" and (learns or parts.architecture is not None):
            known = method_name(parts.method) if learns else "blockout"
            message = f"{name} needs a dense network: leave out the architecture and the method {known}"
            yield Conflict(message, name, "method.name", "architecture")
    if derivations and parts.training.epochs < 2:
        message = (
            f"{derivations[0]} needs at least 2 epochs, one to learn and one to train, got {parts.training.epochs}"
        )
        yield Conflict(message, "training.epochs", derivations[0])


def _unsuited_to_mixing(parts: Parts) -> Iterator[Conflict]:
    """Yield why images may not be mixed: a policy that learns is scored by the one right class of an image."""
    if not isinstance(parts.method, BlockDropSettings) or not parts.method.learns:
        return
    for name in ("mixup", "cutmix"):
        if value := getattr(parts.training, name):
            message = (
                f"training.{name}: must be 0 where a policy of blockdrop learns, which scores by the one right class "
                f"of an image, got {value}; leave it out or take a policy that does not learn"
            )
            yield Conflict(message, f"training.{name}", "method.policy", "method.name")


def _refusal(check: Callable[[], None], *keys: str) -> Iterator[Conflict]:
    """Yield the error of a check, if it raises one, as a conflict of these keys."""
    try:
        check()
    except ValueError as error:
        yield Conflict(str(error), *keys)


def backbone_from_json(document: Mapping[str, Any]) -> Any:
    """Return the settings of a registered backbone from ``{"name": ..., setting: value}``.

    Raises:
        ValueError: The name or a setting is unknown, or a value has the wrong type or is out of range; the message
            names it.
    """
    values = _mapping(document, "backbone", {"name": "convnet"})
    name = values.pop("name", "convnet")
    return from_json(backbone_named(name).settings, values, where="backbone")


def _mapping(document: Any, name: str, example: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise ValueError(f"{name} must be a mapping, such as {dict(example)}, got {document!r}")
    return dict(document)
