"""Whose code a submitted study may run: only factories, plug-ins and weights that the operator allows."""

from collections.abc import Iterator, Mapping
from typing import Any

from nas_blockout import backbones, data, methods, training
from nas_blockout.plugins.choices import Choices
from nas_blockout.plugins.named_code import file_of
from nas_blockout.settings_fields import Conflict
from search_spaces import CHOICES as SPACES
from services.search_plugins import PRUNER_CHOICES, SEARCHER_CHOICES
from services.settings import Settings
from services.study_config.errors import Path, Violation, shortened

_IN_FILE = "a file of yours cannot be run by the service"


def refused(document: Mapping[str, Any], settings: Settings) -> list[Violation]:
    """Return the code and weights in a study that the operator does not allow; nothing is imported or opened.

    Args:
        document: The study as plain values, as it was submitted.
        settings: Settings of the service.
    """
    found = [violation for path, backbone in _backbones(document) for violation in _of(backbone, path, settings)]
    for choices, path, name in _names(document):
        found += _of_plugin(choices, path, name, settings)
    return found


def names_network(document: Mapping[str, Any]) -> bool:
    """Whether a study has a network from a factory or a plug-in.

    The service does not build it, however far it is allowed: its code, and weights of any size, run in the job of the
    study, which also checks that the network fits the data. Nor does it import a factory; a plug-in that is allowed it
    imports, to check its settings.
    """
    return any(
        "factory" in backbone or backbone.get("name", "convnet") not in [*backbones.BACKBONES]
        for _, backbone in _backbones(document)
    )


def _places(document: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the study and its arms."""
    yield (), document
    arms = document.get("arms")
    for name, arm in arms.items() if isinstance(arms, Mapping) else ():
        if isinstance(arm, Mapping):
            yield ("arms", str(name)), arm


def _backbones(document: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield every mapping that settings of a backbone may come from, whatever backbone it names."""
    for path, place in _places(document):
        if isinstance(backbone := place.get("backbone"), Mapping):
            yield (*path, "backbone"), backbone


def _names(document: Mapping[str, Any]) -> Iterator[tuple[Choices[Any], Path, str]]:
    """Yield every name that may be that of a plug-in."""
    sections: tuple[tuple[str, str, Choices[Any]], ...] = (
        ("backbone", "name", backbones.CHOICES),
        ("method", "name", methods.CHOICES),
        ("data", "name", data.CHOICES),
        ("data", "augment", data.AUGMENTATION_CHOICES),
        ("training", "loss", training.CHOICES),
    )
    for path, place in _places(document):
        for section, key, choices in sections:
            settings = place.get(section)
            if isinstance(settings, Mapping) and isinstance(name := settings.get(key), str):
                yield choices, (*path, section, key), name
        for section, choices in (("searcher", SEARCHER_CHOICES), ("pruner", PRUNER_CHOICES)):
            named = place.get(section)
            if isinstance(named, str):
                yield choices, (*path, section), named
            elif isinstance(named, Mapping) and isinstance(name := named.get("name"), str):
                yield choices, (*path, section, "name"), name
        spaces = place.get("space")
        for name in spaces if isinstance(spaces, list) else ():
            if isinstance(name, str):
                yield SPACES, (*path, "space"), name


def _of_plugin(choices: Choices[Any], path: Path, name: str, settings: Settings) -> Iterator[Violation]:
    try:
        origin = choices.origin(name)
    except Conflict:  # there is no such choice, which is told as of any other name
        return
    if origin is not None and not settings.allows_origin(origin):
        rule = _IN_FILE if file_of(origin.place) else "the operator of this service does not allow this plug-in"
        allowed = ", ".join(settings.plugins) or "none"
        remedy = f"NAS_BLOCKOUT_PLUGINS of the service allows {allowed}; run other studies with `nas-blockout run`"
        yield Violation(path, rule, shortened(name), remedy)


def _of(backbone: Mapping[str, Any], path: Path, settings: Settings) -> Iterator[Violation]:
    factory, weights = backbone.get("factory"), backbone.get("weights")
    if isinstance(factory, str) and not settings.allows_factory(factory):
        rule = _IN_FILE if file_of(factory) else "the operator of this service does not allow this factory"
        allowed = ", ".join(settings.factories) or "none"
        remedy = f"NAS_BLOCKOUT_FACTORIES of the service allows {allowed}; run other studies with `nas-blockout run`"
        yield Violation((*path, "factory"), rule, shortened(factory), remedy)
    if isinstance(weights, str) and not settings.allows_weights(weights):
        rule = (
            "must be the absolute path of a file in the folder of weights of this service"
            if settings.weights is not None
            else "the operator of this service allows no files of weights"
        )
        remedy = "NAS_BLOCKOUT_WEIGHTS of the service names the folder; ask the operator to put the file there"
        yield Violation((*path, "weights"), rule, shortened(weights), remedy)
