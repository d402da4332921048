"""Which plug-ins a study uses, recorded with their distributions and versions: its numbers are theirs."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nas_blockout import backbones, data, methods, training
from nas_blockout.experiment import Experiment
from nas_blockout.plugins.choices import Choices, NotAllowed
from nas_blockout.plugins.installed import Origin
from nas_blockout.settings_fields import Conflict
from search_spaces import CHOICES as SPACES
from services.search_plugins import PRUNER_CHOICES, SEARCHER_CHOICES

# Of an arm: its experiment, the names of its spaces, and those of its searcher and its pruner, each after the word for
# its kind in the plural.
Code = tuple[Experiment, Iterable[str], Iterable[tuple[str, str]]]
Records = Mapping[str, Mapping[str, Mapping[str, str | None]]]
_CHOICES: Mapping[str, Choices[Any]] = {
    "backbones": backbones.CHOICES,
    "methods": methods.CHOICES,
    "spaces": SPACES,
    "sources": data.CHOICES,
    "searchers": SEARCHER_CHOICES,
    "pruners": PRUNER_CHOICES,
    "losses": training.CHOICES,
    "augmentations": data.AUGMENTATION_CHOICES,
}


class PluginMissing(ValueError):
    """A recorded study needs a plug-in that is not installed, or cannot be used."""


class PluginRefused(PluginMissing):
    """A recorded study needs a plug-in that the operator does not allow; it was not imported."""


def used(
    experiment: Experiment, spaces: Iterable[str], search: Iterable[tuple[str, str]] = ()
) -> Iterator[tuple[str, Origin]]:
    """Yield the plug-ins of an arm, each with the word for its kind in the plural.

    Args:
        experiment: Experiment of the arm.
        spaces: Names of its search spaces.
        search: ``searchers`` and ``pruners``, each with the name that the arm has of this kind.
    """
    names = [
        ("backbones", backbones.name_of(experiment.backbone)),
        ("methods", methods.method_name(experiment.method)),
        *(("spaces", space) for space in spaces),
        ("sources", experiment.data.name),
        ("augmentations", experiment.data.augment),
        ("losses", experiment.training.loss),
        *search,
    ]
    for kind, name in names:
        if (origin := _CHOICES[kind].origin(name)) is not None:
            yield kind, origin


def records_of(arms: Iterable[Code]) -> dict[str, Any]:
    """Return the plug-ins of a study as plain JSON types: by kind and name, place, distribution and version.

    Args:
        arms: What each arm uses, as the arguments of `used`.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm in arms:
        for kind, origin in used(*arm):
            of_kind = found.setdefault(kind, {})
            of_kind[origin.name] = {
                "place": origin.place,
                "distribution": origin.distribution,
                "version": origin.version,
            }
    return {kind: dict(sorted(of_kind.items())) for kind, of_kind in sorted(found.items())}


def require_present(study: Any, records: Records) -> None:
    """Refuse a recorded study one of whose plug-ins is missing, before anything of it is read.

    Args:
        study: Name of the study.
        records: As of `records_of`.

    Raises:
        PluginMissing: A plug-in is not installed, or cannot be used; `PluginRefused` if the operator does not allow it.
    """
    for kind, of_kind in records.items():
        choices = _CHOICES[kind]
        for name, record in of_kind.items():
            if not choices.is_known(name):
                owner = record["distribution"]
                remedy = f"install {owner}=={record['version']}" if owner else "install the package that has it"
                raise PluginMissing(
                    f"study {study!r} needs the {choices.kind} {name!r} ({record['place']}) of a plug-in that is not "
                    f"installed here: {remedy}"
                )
            try:
                choices.named(name)
            except Conflict as error:
                text = " ".join(str(error).split()).removeprefix(f"{choices.key}: ")
                kind_of_error = PluginRefused if isinstance(error, NotAllowed) else PluginMissing
                raise kind_of_error(f"study {study!r} needs the {choices.kind} {name!r}: {text}") from error
