"""Checks and resolves the document of a study file as a whole, so that all violated rules are reported at once."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas_blockout.backbones import BACKBONES
from nas_blockout.data import DataSettings
from nas_blockout.experiment import DERIVATIONS, Experiment, backbone_from_json
from nas_blockout.methods import Preset, method_from_json, preset_of
from nas_blockout.serialization import from_json, near
from nas_blockout.train import TrainingSettings
from search_spaces import SPACES
from services.renamed_keys import upgraded_study
from services.study_config import errors, settings_models
from services.study_config.compatibility import incompatibilities
from services.study_config.errors import (
    MOST_VIOLATIONS,
    LineMap,
    StudyError,
    Violation,
    one_line,
    violation_of,
    with_lines,
)
from services.study_config.resolved_study import Arm, Study, parse_resolved
from services.study_config.schema import ArmConfig, StudyConfig
from services.study_config.search_options import Rules, Searcher, resolve_rules
from services.study_config.yaml_reader import is_resolved, read_document

_SHARED = ("data", "backbone", "training", "constraints", "objectives", "selection")  # every arm depends on these
_ARM_SECTIONS = ("backbone", "method", "training", *DERIVATIONS)
# Substitutes for required keys that are missing or wrong, so that the rest of the file can still be checked.
_STAND_INS: Mapping[str, Any] = {"schema_version": 2, "name": "study", "budget": {"trainings": 1}}


def read(path: Path) -> StudyConfig:
    """Read and check a study file.

    Raises:
        StudyError: It is too large, not valid YAML, or violates rules.
    """
    return parse(read_document(path), source=str(path))


def parse(document: Mapping[str, Any], *, source: str) -> StudyConfig:
    """Check the keys and the settings of a study given as plain values.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    document = upgraded_study(document)
    if violations := _structural(document):
        raise StudyError.of(violations, source=source)
    return StudyConfig.model_validate(document)


def resolve(config: StudyConfig, *, source: str) -> Study:
    """Give every setting its value and check that the parts of every arm fit together.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    study, violations = _resolved(config, ())
    if violations or study is None:
        raise StudyError.of(violations, source=source)
    return study


def study_of(document: Mapping[str, Any], *, source: str, lines: LineMap | None = None) -> Study:
    """Check and resolve a study given as plain values; a study that is resolved already is only read.

    Args:
        document: Content of a study file, or a result of `Study.to_json`; of version 2 or 1.
        source: Name of the file or other origin of the document, for error messages.
        lines: Lines of the keys, if the document is a file.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    if is_resolved(document):
        return _read_resolved(document, source=source)
    return resolve_document(document, source=source, lines=lines)


def resolve_document(document: Mapping[str, Any], *, source: str, lines: LineMap | None = None) -> Study:
    """Check and resolve a study that is not resolved yet, given as plain values.

    Args:
        document: Content of a study file, of version 2 or 1.
        source: Name of the file or other origin of the document, for error messages.
        lines: Lines of the keys, if the document is a file.

    Raises:
        StudyError: The study violates rules; the error lists all of them.
    """
    document = upgraded_study(document)
    violations = _structural(document)
    config = _without_violations(document, violations)
    study = None
    if config is not None:
        study, conflicts = _resolved(config, [violation.path for violation in violations])
        violations += conflicts
    if violations or study is None:
        raise StudyError.of(with_lines(violations, lines), source=source)
    return study


def _read_resolved(document: Mapping[str, Any], *, source: str) -> Study:
    try:
        return parse_resolved(document)
    except ValidationError as error:
        raise StudyError.of(settings_models.explained(error, StudyConfig), source=source) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(
            f"{source}: not a valid resolved study like `study.yaml` in the folder of a study: {one_line(repr(error))}"
        ) from None


def _structural(document: Mapping[str, Any]) -> list[Violation]:
    """Return the violations of single keys and settings, anywhere in the document."""
    violations = settings_models.violations_of(StudyConfig, document, ())
    for layers in _sections(document):
        if len(violations) < MOST_VIOLATIONS:
            violations += layers.violations()
    data = document.get("data")
    folder = data.get("folder") if isinstance(data, Mapping) else None
    if isinstance(folder, str) and not Path(folder).is_absolute():
        rule = "must be an absolute path if the study does not come from a file, since workers run in other folders"
        violations.append(Violation(("data", "folder"), rule, repr(folder), "give the whole path"))
    return list(dict.fromkeys(violations))  # a setting of the study is checked again with every arm that uses it


@dataclass(frozen=True, slots=True)
class _Layers:
    """The settings of a section for one arm, merged from the study, the arm that it extends, and the arm itself.

    Args:
        section: Name of the section.
        values: The merged settings; for equal keys the last one counts.
        origins: Path of the mapping from which each key comes.
        path: Path of the last mapping; empty if there is none.
    """

    section: str
    values: Mapping[str, Any]
    origins: Mapping[str, errors.Path]
    path: errors.Path

    @classmethod
    def merged(cls, section: str, layers: Iterable[tuple[errors.Path, Any]]) -> "_Layers":
        """Merge the settings of a section.

        The settings of one backbone mean nothing to another, so a different name discards what was merged before. A
        method discards it with any name: an arm that names a method states all settings of the method.
        """
        values: dict[str, Any] = {}
        origins: dict[str, errors.Path] = {}
        path: errors.Path = ()
        for place, layer in layers:
            if not isinstance(layer, Mapping):
                continue
            discards = "name" in layer and (section == "method" or layer["name"] != values.get("name"))
            values = {**({} if discards else values), **layer}
            origins = {**({} if discards else origins), **dict.fromkeys(map(str, layer), place)}
            path = place
        return cls(section, values, origins, path)

    def violations(self) -> Iterator[Violation]:
        """Yield the violations of the settings, with the paths in the file from which the settings come."""
        if not self.path:
            return
        for violation in settings_models.violations(self.section, self.values):
            place = self.origins.get(str(violation.path[1]), self.path)
            yield Violation((*place, *violation.path[1:]), violation.rule, violation.value, violation.remedy)


def _sections(document: Mapping[str, Any]) -> Iterator[_Layers]:
    """Yield the settings of every section of a study and of its arms, merged as they will be run."""
    for section in ("data", "backbone", "training"):
        yield _Layers.merged(section, [((section,), document.get(section))])
    arms = document.get("arms")
    if not isinstance(arms, Mapping):
        return
    for name, arm in arms.items():
        if isinstance(arm, Mapping):
            base = arm.get("extends")
            other = arms.get(base) if isinstance(base, str) else None
            for section in _ARM_SECTIONS:
                yield _layers(section, document, (name, arm), (base, other if isinstance(other, Mapping) else {}))


def _layers(
    section: str, study: Mapping[str, Any], arm: tuple[Any, Mapping[str, Any]], base: tuple[Any, Mapping[str, Any]]
) -> _Layers:
    layers: list[tuple[errors.Path, Any]] = [
        (("arms", str(name), section), document.get(section)) for name, document in (base, arm)
    ]
    if section in ("backbone", "training"):
        layers = [((section,), study.get(section)), *layers]
    return _Layers.merged(section, layers)


def _without_violations(document: Mapping[str, Any], violations: Iterable[Violation]) -> StudyConfig | None:
    """Return the study without its wrong keys, so that the rest can be checked; None if too little is left."""
    salvaged: Any = copy.deepcopy(dict(document))
    for path in {_removable(document, violation.path) for violation in violations} - {()}:
        *parents, last = path
        place = salvaged
        for part in parents:
            place = place.get(part, {})
        place.pop(last, None)
    for key, value in _STAND_INS.items():
        if any(violation.path[:1] == (key,) for violation in violations):
            salvaged[key] = value
    try:
        return StudyConfig.model_validate(salvaged)
    except ValidationError:
        return None


def _removable(document: Any, path: errors.Path) -> errors.Path:
    """Return the part of a path that leads through mappings: for a wrong item of a list, the whole list is removed."""
    for depth, part in enumerate(path):
        if not isinstance(document, Mapping) or part not in document:
            return path[:depth]
        document = document[part]
    return path


def _resolved(config: StudyConfig, broken: Iterable[errors.Path]) -> tuple[Study | None, list[Violation]]:
    """Resolve a study, or return the violations between its parts.

    Args:
        config: The study.
        broken: Paths of keys that violate a rule by themselves; arms that depend on them are not checked, since that
            would only report consequences of the same mistake.
    """
    violations = [*_references(config), *_unknown_spaces(config)]
    broken = [*broken, *(violation.path for violation in violations)]
    if any(path[0] in _SHARED for path in broken if path):
        return None, violations
    names = {str(path[1]) for path in broken if len(path) > 1 and path[0] == "arms"}
    arms = {}
    with _Collected(violations):
        data = from_json(DataSettings, config.data, where="data")
        for name, arm in config.arms.items():
            if not names & {name, arm.extends} and len(violations) < MOST_VIOLATIONS:
                resolver = _ArmResolver(config, name, data)
                arms[name] = resolver.arm()
                violations += resolver.violations
    if violations or len(arms) < len(config.arms):
        return None, violations
    return Study(config, {name: arm for name, arm in arms.items() if arm is not None}, data), []


def _references(config: StudyConfig) -> Iterator[Violation]:
    """Yield references to arms that do not exist or cannot be referred to there."""
    for name, arm in config.arms.items():
        matched = arm.match.arm if arm.match else None
        others = set(config.arms) - {name}
        for place, other in ((("extends",), arm.extends), (("match", "arm"), matched)):
            path = ("arms", name, *place)
            if other is not None and other not in others:
                yield Violation(path, f"no other arm {other!r}", remedy=near(other, others))
            elif other is not None and place == ("extends",) and config.arms[other].extends is not None:
                yield Violation(path, f"{other!r} itself extends another arm; name that one")
            elif other is not None and place != ("extends",) and config.arms[other].match is not None:
                # The widths of an arm are known once the search of the arm that it matches has ended. In a chain, the
                # last arm would have to wait for two searches one after the other.
                yield Violation(path, f"{other!r} itself matches another arm; name that one")
        if arm.match is not None and arm.confusion is not None:
            yield Violation(("arms", name, "match"), "the cost of branches from confusions cannot be chosen")
    for name in config.export or []:
        if name not in config.arms:
            yield Violation(("export",), f"no arm {name!r}", remedy=near(name, config.arms))


def _unknown_spaces(config: StudyConfig) -> Iterator[Violation]:
    for name, arm in config.arms.items():
        for space in arm.space or []:
            if space not in SPACES:
                yield Violation(("arms", name, "space"), f"no such search space {space!r}", remedy=near(space, SPACES))


class _ArmResolver:
    """Resolves one arm and collects the violations between its parts.

    Args:
        config: The study.
        name: Name of the arm.
        data: Data of the study.
    """

    def __init__(self, config: StudyConfig, name: str, data: DataSettings) -> None:
        self.violations: list[Violation] = []
        self._config, self._name, self._data = config, name, data
        self._arm = config.arms[name]
        self._base = config.arms[self._arm.extends] if self._arm.extends else ArmConfig()
        study, arms = vars(config), ((name, vars(self._arm)), (self._arm.extends, vars(self._base)))
        self._layers = {section: _layers(section, study, *arms) for section in _ARM_SECTIONS}

    def arm(self) -> Arm | None:
        """Return the resolved arm, or None if there are violations."""
        arm, base = self._arm, self._base
        spaces = (
            arm.space if arm.space is not None else base.space or []
        )  # an empty list overrides the spaces of the base
        match = arm.match or base.match
        violations: list[Violation] = []
        experiment: Experiment | None = None
        resolved: tuple[Searcher, Rules] | None = None
        with _Collected(violations):
            experiment = self._experiment()
        if experiment is not None:
            violations += incompatibilities(experiment, spaces, matched=match is not None)
            with _Collected(violations):
                resolved = resolve_rules(arm, base, self._config, epochs=experiment.training.epochs)
        self.violations = [self._placed(violation) for violation in violations]
        if violations or experiment is None or resolved is None:
            return None
        searcher, rules = resolved
        return Arm(
            self._name, experiment, tuple(spaces), searcher, match.arm if match else None, arm.description, rules
        )

    def _experiment(self) -> Experiment:
        method = {"name": "none", **self._layers["method"].values}
        preset = preset_of(method)
        return Experiment(
            data=self._data,
            backbone=backbone_from_json(self._backbone(preset)),
            method=method_from_json(method),
            training=from_json(TrainingSettings, self._layers["training"].values, where="training"),
            **{name: self._derivation(name, kind, preset) for name, kind in DERIVATIONS.items()},
        )

    def _backbone(self, preset: Preset | None) -> Mapping[str, Any]:
        values = self._layers["backbone"].values
        settings = BACKBONES[values.get("name", "convnet")].settings
        # A preset is written for one backbone: its values for settings that another backbone lacks have no meaning.
        known = {item.name for item in fields(settings)}
        defaults = {key: value for key, value in preset.backbone.items() if key in known} if preset else {}
        return {**defaults, **values}

    def _derivation(self, name: str, kind: type, preset: Preset | None) -> Any:
        """Return the settings of one kind of derivation, or None if neither the arm nor its base has it."""
        layers = self._layers[name]
        if not layers.path:
            return None
        defaults = preset.distillation if preset and name == "distillation" else {}
        return from_json(kind, {**defaults, **layers.values}, where=name)

    def _placed(self, violation: Violation) -> Violation:
        """Return a violation with its path in the file, which leads to another arm if the setting comes from it."""
        path = violation.path
        layers = self._layers.get(str(path[0])) if path else None
        if layers is not None and len(path) > 1:
            place = (*layers.origins.get(str(path[1]), ("arms", self._name, path[0])), *path[1:])
        else:
            place = ("arms", self._name, *path)
        return Violation(place, violation.rule, violation.value, violation.remedy)


class _Collected:
    """A context that turns a ValueError raised in its block into a violation.

    Args:
        violations: List to which the violation is added.
        path: Path of the mapping that is read in the block.
    """

    def __init__(self, violations: list[Violation], path: errors.Path = ()) -> None:
        self._violations, self._path = violations, path

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """Leave the block; other errors propagate."""
        if not isinstance(error, ValueError):
            return False
        self._violations.append(violation_of(error, self._path))
        return True
