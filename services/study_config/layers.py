"""The settings of an arm, merged from the study, the arm that it extends and the arm itself, and which are unknown.

A value that violates a rule by itself is `UNKNOWN`. Rules between settings that are all known can still be checked;
those that read an unknown setting would only report consequences of the same mistake.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from nas_blockout.experiment import DERIVATIONS
from nas_blockout.methods import METHODS
from services.study_config import errors, settings_models
from services.study_config.errors import NO_SUCH_KEY, Violation
from services.study_config.search_options import Searching, Wanted


class Unknown(Enum):
    """The type of `UNKNOWN`."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
ARM_SECTIONS = ("backbone", "method", "training", *DERIVATIONS)
_NAMED = ("backbone", "method")
_OPTIONS = (*Searching.model_fields, "space", "match")
# Settings that no rule compares with others: while one of them is wrong, everything else can be checked.
_ALONE = frozenset(
    {
        f"training.{name}"
        for name in (
            *("optimizer", "learning_rate", "weight_decay", "momentum", "batch_size", "label_smoothing"),
            *("schedule", "schedule_milestones", "schedule_factor", "schedule_rise", "accumulation", "gradient_clip"),
        )
    }
)
# Settings of other sections whose defaults the preset of a method decides.
_BY_PRESET = frozenset(
    name
    for method in METHODS.values()
    for preset in method.presets.values()
    for name in (
        *(f"backbone.{key}" for key in preset.backbone),
        *(f"distillation.{key}" for key in preset.distillation),
    )
)


def marked(document: Mapping[str, Any], violations: Iterable[Violation]) -> dict[str, Any]:
    """Return a document in which every value that violates a rule is `UNKNOWN`, and no key is one that does not exist.

    A key that does not exist makes the key unknown for which it probably stands.

    Args:
        document: A study as plain values.
        violations: Violations of its values, with paths in the document.
    """
    changed = copy.deepcopy(dict(document))
    for violation in violations:
        if not _names_an_arm(changed, violation.path):
            _mark(changed, violation)
    return changed


def _names_an_arm(document: Mapping[str, Any], path: errors.Path) -> bool:
    """Whether a violation is about the name of an arm, whose settings can be checked all the same."""
    if len(path) != 2 or path[0] != "arms":
        return False
    return isinstance(document["arms"], dict) and isinstance(document["arms"].get(path[1]), dict)


def _mark(document: dict[Any, Any], violation: Violation) -> None:
    place, path = document, violation.path
    for depth, part in enumerate(path, 1):
        inner = place.get(part)
        if depth < len(path) and isinstance(inner, dict):
            place = inner
        elif violation.rule == NO_SUCH_KEY and depth == len(path):
            place.pop(part, None)
            if violation.meant is not None:
                place.setdefault(violation.meant, UNKNOWN)
            return
        else:  # also where the path goes on into a list: with a wrong item, the whole list is unknown
            place[part] = UNKNOWN
            return


def known(value: Any) -> Any:
    """Return a marked value without its unknown parts."""
    if isinstance(value, dict):
        return {key: known(inner) for key, inner in value.items() if inner is not UNKNOWN}
    return value


def _whole(value: Any) -> Any:
    """Return a setting, or `UNKNOWN` if it is a mapping of which a part is unknown."""
    return UNKNOWN if isinstance(value, Mapping) and UNKNOWN in map(_whole, value.values()) else value


@dataclass(frozen=True, slots=True)
class Layers:
    """The settings of a section for one arm, merged from the study, the arm that it extends, and the arm itself.

    Args:
        section: Name of the section.
        values: The merged settings; for equal keys the last one counts. Some may be `UNKNOWN`.
        origins: Path of the mapping from which each key comes.
        path: Path of the last mapping; empty if there is none.
        open: Whether a layer is unknown as a whole, so that there may be keys that `values` lacks.
    """

    section: str
    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, errors.Path] = field(default_factory=dict)
    path: errors.Path = ()
    open: bool = False

    @classmethod
    def merged(cls, section: str, layers: Iterable[tuple[errors.Path, Any]]) -> "Layers":
        """Merge the settings of a section.

        The settings of one backbone mean nothing to another, so a different name discards what was merged before; so
        does another loss with the options of the one before. A method discards it with any name: an arm that names a
        method states all settings of the method.
        """
        values: dict[str, Any] = {}
        origins: dict[str, errors.Path] = {}
        path: errors.Path = ()
        is_open = False
        for place, layer in layers:
            if layer is UNKNOWN:  # it may have changed each of the settings before it
                values, is_open = dict.fromkeys(values, UNKNOWN), True
            if not isinstance(layer, Mapping):
                continue
            discards = "name" in layer and (section == "method" or layer["name"] != values.get("name"))
            is_open = is_open and not (discards and section == "method")
            if section == "training" and layer.get("loss", values.get("loss")) != values.get("loss"):
                values.pop("loss_options", None)  # which mean nothing to another loss
            values = {**({} if discards else values), **{key: _whole(value) for key, value in layer.items()}}
            origins = {**({} if discards else origins), **dict.fromkeys(map(str, layer), place)}
            path = place
        return cls(section, values, origins, path, is_open)

    @property
    def known(self) -> dict[str, Any]:
        """The settings that are known."""
        return {key: value for key, value in self.values.items() if value is not UNKNOWN}

    @property
    def nameless(self) -> bool:
        """Whether it is unknown which backbone or method the settings are for."""
        named = self.values.get("name", UNKNOWN if self.open else None)
        return self.section in _NAMED and named is UNKNOWN

    def unknown(self) -> Iterator[str]:
        """Yield what is unknown: dotted keys, or the section if nothing in it is known."""
        if self.nameless or (self.open and not self.path):
            yield self.section
            return
        for key, value in self.values.items():
            if value is UNKNOWN:
                yield f"{self.section}.{key}"
        if self.open or self.values.get("preset") is UNKNOWN:
            for key in settings_models.keys(self.section, self.values.get("name")):
                if key not in self.values:
                    yield f"{self.section}.{key}"

    def violations(self) -> Iterator[Violation]:
        """Yield the violations of the known settings, with the paths in the file from which the settings come."""
        if not self.path or self.nameless:
            return
        unknown = set(self.unknown())
        for violation in settings_models.violations(self.section, self.known):
            if ".".join(map(str, violation.path[:2])) not in unknown:
                place = self.origins.get(str(violation.path[1]), self.path)
                yield Violation(
                    (*place, *violation.path[1:]),
                    violation.rule,
                    violation.value,
                    violation.remedy,
                    meant=violation.meant,
                )


def sections(document: Mapping[str, Any]) -> Iterator[Layers]:
    """Yield the settings of every section of a study and of its arms, merged as they will be run.

    Args:
        document: A study as plain values, marked.
    """
    for section in ("data", "backbone", "training"):
        yield Layers.merged(section, [((section,), document.get(section))])
    arms = arms_of(document)
    for name in arms:
        yield from ArmSettings(document, arms, name).layers.values()


def arms_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the arms of a marked study whose settings can be read, by name."""
    arms = document.get("arms")
    return {name: arm for name, arm in arms.items() if isinstance(arm, dict)} if isinstance(arms, dict) else {}


class ArmSettings:
    """The merged settings of one arm, where each of them comes from, and which are unknown.

    Args:
        document: A study as plain values, marked.
        arms: Its arms whose settings can be read.
        name: Name of the arm.
    """

    def __init__(self, document: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], name: str) -> None:
        self.name = name
        self.arm = arms.get(name, {})
        extended = self.arm.get("extends")
        self.base_name = None if extended is UNKNOWN else extended
        self.base: Any = {} if extended is None else arms.get(extended, UNKNOWN)
        self._study = document
        self._own: errors.Path = ("arms", name)
        self._inherited: errors.Path = ("arms", str(self.base_name))
        self.layers = {section: self._merged(section) for section in ARM_SECTIONS}
        self.unknown = self._unknown()

    def _merged(self, section: str) -> Layers:
        inherited = UNKNOWN if self.base is UNKNOWN else self.base.get(section)
        layers = [((*self._inherited, section), inherited), ((*self._own, section), self.arm.get(section))]
        if section in ("backbone", "training"):
            layers = [((section,), self._study.get(section)), *layers]
        return Layers.merged(section, layers)

    def _unknown(self) -> set[str]:
        unknown = {key for layers in self.layers.values() for key in layers.unknown()}
        if {"method", "method.preset"} & unknown:
            unknown |= {
                key for key in _BY_PRESET if key.partition(".")[2] not in self.layers[key.partition(".")[0]].values
            }
        for option in _OPTIONS:
            _, value = self._option(option)
            if value is UNKNOWN:
                unknown.add(option)
            elif isinstance(value, Mapping):
                unknown |= {f"{option}.{key}" for key, inner in value.items() if inner is UNKNOWN}
        if self._study.get("data") is UNKNOWN:
            unknown.add("data")
        return unknown

    def _option(self, key: str) -> tuple[errors.Path, Any]:
        """Return the value of a search option with the path of the mapping that holds it; None if none does."""
        layers: list[tuple[errors.Path, Any]] = [(self._own, self.arm), (self._inherited, self.base)]
        if key in Wanted.model_fields:
            layers.append(((), self._study))
        for place, layer in layers:
            if layer is UNKNOWN:
                return place, UNKNOWN
            if layer.get(key) is not None:
                return place, layer[key]
        return self._own, None

    def depends_on_unknown(self, keys: Iterable[str]) -> bool:
        """Whether one of some settings, or for a section one of its settings, is unknown."""
        return any(_overlap(key, unknown) for key in keys for unknown in self.unknown)

    @property
    def incomplete(self) -> bool:
        """Whether a setting is unknown that rules compare with others, so that not all rules could be checked."""
        return any(key not in _ALONE and not _overlap(key, "data") for key in self.unknown)

    def place(self, keys: Iterable[str]) -> errors.Path:
        """Return the path of the study file to which a conflict between settings is attributed.

        Settings from the study or from the extended arm may be right there, and wrong only together with what this arm
        adds. A conflict therefore belongs to the innermost layer that any of its settings come from; so a conflict
        within the extended arm is reported there, and only there.

        Args:
            keys: The settings, first the one to change.
        """
        keys = list(keys)
        owners = [owner for key in keys for owner in self._owners(key)]
        return (*max(owners, key=self._depth, default=self._own), *keys[0].split("."))

    def _owners(self, key: str) -> Iterator[errors.Path]:
        """Yield the arm, the extended arm or the study (an empty path) for each place that a setting comes from."""
        section = key.partition(".")[0]
        if section in self.layers:
            layers = self.layers[section]
            if layers.path:
                yield from (place[:-1] for name, place in layers.origins.items() if _overlap(f"{section}.{name}", key))
                if key == section:
                    yield layers.path[:-1]
        elif section in _OPTIONS:
            place, value = self._option(section)
            if value is not None:
                yield place

    def _depth(self, owner: errors.Path) -> int:
        return [(), self._inherited, self._own].index(owner)


def _overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is within the other."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")
