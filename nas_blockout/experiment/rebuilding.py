"""An exported model as a network to train on: what builds it is recorded with the model, and followed here."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nas_blockout
from nas_blockout.architecture import Architecture
from nas_blockout.backbones import BACKBONES, CHOICES, name_of, runs_code_of_others
from nas_blockout.backbones.branched import Sites
from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.experiment.branchable import Shape, analysis_of, build_branchable, from_scratch
from nas_blockout.experiment.builder import built, plain
from nas_blockout.experiment.config import Experiment, backbone_from_json
from nas_blockout.experiment.costs import costs_by_group
from nas_blockout.export import ExportedModel, VerificationError
from nas_blockout.export.model_dir import NETWORK
from nas_blockout.export.models import Deployed, load_exported_weights
from nas_blockout.graph.branched import BranchedGraph
from nas_blockout.graph.network import GraphNetwork
from nas_blockout.methods.blockdrop import BlockDropSettings
from nas_blockout.networks import Network
from nas_blockout.plugins import named_code
from nas_blockout.plugins.choices import allowing
from nas_blockout.serialization import to_json

SCHEMA_VERSION = 1
_WITHOUT = "To run the model without building it, open it by nas_blockout.export.ExportedModel"


def origin_of(experiment: Experiment, network: nn.Module) -> dict[str, Any] | None:
    """Return what builds the network that an experiment ended in, as plain JSON types.

    Args:
        experiment: What was run.
        network: Plain, as it was trained.

    Returns:
        The settings of the backbone, with the name of a factory's file but not its folder; of a network that was made
        through its graph, the hash of the graph and what each group of nodes costs; and versions. None for a network
        that blockdrop steers, which takes its method to build.
    """
    if isinstance(experiment.method, BlockDropSettings):
        return None
    backbone = plain(experiment, None).backbone
    versions, name = _versions(backbone), name_of(backbone)
    if (file := named_code.file_of(name)) is not None:  # a plug-in in a file
        name = f"{file.name}:{name.rpartition(':')[2]}"
    if isinstance(backbone, ModuleSettings) and (file := named_code.file_of(backbone.factory)) is not None:
        backbone = replace(backbone, factory=f"{file.name}:{backbone.factory.rpartition(':')[2]}")
    document = {
        "schema_version": SCHEMA_VERSION,
        "backbone": {"name": name, **to_json(backbone)},
        "target_macs": experiment.target_macs,
        "graph_hash": None,
        "versions": versions,
    }
    if isinstance(network, BranchedGraph):
        costs: dict[str, list[dict[str, int]]] = {}
        for (number, _), cost in sorted(costs_by_group(network).items()):
            name = network.architecture.layers[number].name
            costs.setdefault(name, []).append({"macs": cost.macs, "parameters": cost.parameters})
        document |= {"graph_hash": network.whole.graph_hash, "costs": costs}
    return document


def load_model(folder: Path | str, *, factory: str | None = None) -> Deployed:
    """Return an exported model as a network that can be trained on, built by this package.

    Nothing is loaded whose bytes are not those that were written, and the network is returned only if it computes the
    recorded logits. To run a model without building it, see `nas_blockout.export.ExportedModel`.

    Args:
        folder: Of the model.
        factory: What makes the whole network, if that is code of somebody's: ``package.module:name`` or
            ``path/to/file.py:name`` of a factory or of a plug-in, or the name of a plug-in that is installed. It is
            imported and called with the arguments that the folder names. The folder says which one it was; no code
            is imported for a folder that says so alone.

    Returns:
        The network, in eval mode. It takes images in [0, 1], shape ``(batch, channels, height, width)``, which it
        normalizes itself; its attribute ``network`` is the one that was trained, for normalized images.

    Raises:
        VerificationError: The folder is not as it was written, does not say how its network is built, or needs a
            factory that is not given, cannot be imported or makes another network by now.
    """
    model = ExportedModel.open(Path(folder))
    if NETWORK not in model.files:
        raise VerificationError(
            f"{folder} has no {NETWORK}, which says how its network is built. Export it again, or, if it was cut to "
            f"some classes, load the whole model. {_WITHOUT}"
        )
    origin = model.json(NETWORK)
    if origin.get("schema_version") != SCHEMA_VERSION:
        raise VerificationError(
            f"{folder}/{NETWORK} has schema_version {origin.get('schema_version')!r}, this program reads "
            f"{SCHEMA_VERSION}. Export the model again"
        )
    try:
        network = _built(model, origin, factory)
    except ValueError as error:  # of settings, of a factory, of an architecture
        raise VerificationError(f"{folder}: the network cannot be built: {error}. {_WITHOUT}") from error
    load_exported_weights(network, model)
    asked = model.preprocessing
    deployed = Deployed(network, asked["mean"], asked["std"]).eval()
    if not model.is_computed_by(deployed):
        raise VerificationError(
            f"{folder}: the network that is built does not compute the recorded logits: {_other_versions(origin)}. "
            f"{_WITHOUT}"
        )
    return deployed


def derived_network(
    experiment: Experiment, architecture: Architecture, *, shape: Shape, classes: int, graph_hash: str | None
) -> Network:
    """Return the network that was derived from that of an experiment, with initial weights.

    Args:
        experiment: What was run.
        architecture: Of the derived network.
        shape: Channels, height and width of an image.
        classes: Number of classes.
        graph_hash: Of the network that it was derived from, if that is known by its graph.

    Raises:
        ValueError: The experiment makes another network than it did.
    """
    backbone = plain(experiment, None).backbone
    if graph_hash is not None and (found := analysis_of(backbone, shape, classes).graph_hash) != graph_hash:
        raise ValueError(
            f"the network must be the one that the structure was learned from, whose graph has the hash {graph_hash}, "
            f"got one with {found}"
        )
    with torch.random.fork_rng(devices=[]):
        return built(plain(experiment, architecture), shape, classes, Sites())


def _built(model: ExportedModel, origin: Mapping[str, Any], factory: str | None) -> Network:
    """Return the network with initial weights.

    Raises:
        ValueError: It cannot be built, or is another one by now.
    """
    backbone = _backbone(origin["backbone"], factory)
    if isinstance(backbone, ModuleSettings):
        if factory is None:
            raise ValueError(
                f"its factory {backbone.factory}, called with {backbone.arguments.to_json()}, is imported only if you "
                f"name it: load_model(..., factory={_place_of(backbone)!r})"
            )
        backbone = replace(backbone, factory=factory)
    elif factory is not None and not runs_code_of_others(backbone):
        raise ValueError(f"factory must be left out, since this network is made by none, got {factory!r}")
    asked, document = model.preprocessing, model.json("architecture.json")
    shape, classes = (asked["channels"], asked["height"], asked["width"]), len(model.class_names)
    architecture = Architecture.from_json(document) if document else None
    with torch.random.fork_rng(devices=[]):
        if origin["graph_hash"] is None:
            experiment = Experiment(backbone=backbone, architecture=architecture, target_macs=origin["target_macs"])
            return built(experiment, shape, classes, Sites())
        _require_graph(backbone, shape, classes, origin)
        network = build_branchable(backbone, shape, classes, Sites())
        assert isinstance(network, GraphNetwork), "only such networks have a hash"
        if architecture is None:
            raise ValueError("architecture.json is empty, but the network was made through its graph")
        return from_scratch(network, architecture)


def _backbone(document: Mapping[str, Any], factory: str | None) -> Any:
    """Return the settings of the backbone; a plug-in is imported only if it is the one that the caller names.

    Raises:
        ValueError: They are refused, or the plug-in is not named.
    """
    name = str(document.get("name"))
    if name in BACKBONES or not CHOICES.is_known(name):  # which is refused, and imports nothing
        return backbone_from_json(document)
    if factory is None:
        raise ValueError(
            f"its backbone {name} is a plug-in, which is imported only if you name it: load_model(..., "
            f"factory={f'path/to/{name}' if named_code.file_of(name) is not None else name!r})"
        )
    with allowing(lambda origin: factory in (origin.name, origin.place)):
        return backbone_from_json({**document, "name": factory})


def _place_of(backbone: ModuleSettings) -> str:
    """Return a factory as it is to be given: one in a file has lost its folder."""
    return f"path/to/{backbone.factory}" if named_code.file_of(backbone.factory) is not None else backbone.factory


def _require_graph(backbone: Any, shape: Shape, classes: int, origin: Mapping[str, Any]) -> None:
    found = analysis_of(backbone, shape, classes).graph_hash
    if found != origin["graph_hash"]:
        made = f"the factory {backbone.factory}" if isinstance(backbone, ModuleSettings) else "the backbone"
        raise ValueError(
            f"{made} makes another network than it did: its graph has the hash {found}, the exported one "
            f"{origin['graph_hash']}; {_other_versions(origin, _versions(backbone))}"
        )


def _other_versions(origin: Mapping[str, Any], found: Mapping[str, str] | None = None) -> str:
    """Return which versions a model was exported with, and which there are."""
    recorded = origin["versions"]
    present = found or {**_versions(None), **{name: _version_of(name) for name in recorded if name != "nas_blockout"}}
    told = (", ".join(f"{name} {text}" for name, text in each.items()) for each in (recorded, present))
    return "it was exported with {}, here there is {}".format(*told)


def _versions(backbone: Any) -> dict[str, str]:
    """Return the versions of what builds a network; of code in a file, the hash of the file."""
    found = {"nas_blockout": nas_blockout.__version__, "torch": version("torch")}
    if isinstance(backbone, ModuleSettings):
        file = named_code.file_of(backbone.factory)
        if file is not None and file.is_file():
            found[file.name] = _content(file)
        elif file is None:
            package = backbone.factory.partition(":")[0].partition(".")[0]
            found |= {name: _version_of(name) for name in packages_distributions().get(package, ())}
    elif backbone is not None and (origin := CHOICES.origin(name_of(backbone))) is not None:
        file = named_code.file_of(origin.place)
        if file is not None and file.is_file():
            found[file.name] = _content(file)
        elif origin.distribution is not None and origin.version is not None:
            found[origin.distribution] = origin.version
    return found


def _content(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"
