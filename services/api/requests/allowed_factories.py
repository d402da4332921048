"""Whose code a submitted study may run: only factories and weights that the operator of the service allows."""

from collections.abc import Iterator, Mapping
from typing import Any

from services.settings import Settings
from services.study_config.errors import Path, Violation, shortened


def refused(document: Mapping[str, Any], settings: Settings) -> list[Violation]:
    """Return the factories and weights in a study that the operator does not allow; nothing is imported or opened.

    Args:
        document: The study as plain values, as it was submitted.
        settings: Settings of the service.
    """
    return [violation for path, backbone in _backbones(document) for violation in _of(backbone, path, settings)]


def names_factory(document: Mapping[str, Any]) -> bool:
    """Whether a study has a network from a factory.

    The service neither imports nor builds it, however far it is allowed: its code, and weights of any size, run in the
    job of the study, which also checks that the network fits the data.
    """
    return any("factory" in backbone for _, backbone in _backbones(document))


def _backbones(document: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield every mapping that settings of a backbone may come from, whatever backbone it names."""
    arms = document.get("arms")
    places: list[tuple[Path, Any]] = [((), document)]
    places += [(("arms", str(name)), arm) for name, arm in arms.items()] if isinstance(arms, Mapping) else []
    for path, place in places:
        if isinstance(place, Mapping) and isinstance(backbone := place.get("backbone"), Mapping):
            yield (*path, "backbone"), backbone


def _of(backbone: Mapping[str, Any], path: Path, settings: Settings) -> Iterator[Violation]:
    factory, weights = backbone.get("factory"), backbone.get("weights")
    if isinstance(factory, str) and not settings.allows_factory(factory):
        in_file = factory.rpartition(":")[0].endswith(".py")
        rule = (
            "a file of yours cannot be run by the service"
            if in_file
            else "the operator of this service does not allow this factory"
        )
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
