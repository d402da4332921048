"""``--set key=value``: keys of a study file that are changed on the command line."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nas_blockout.data import DataSettings, Splits, dimensions
from services.study_config.errors import LineMap, StudyError
from services.study_config.resolution import study_of
from services.study_config.resolved_study import Study
from services.study_config.validation import dimensions_of
from services.study_config.yaml_reader import find, is_resolved, read_with_lines, with_absolute_paths, yaml_value


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a study was read, for error messages.

    Args:
        source: Name of its file.
        lines: Lines of the keys in the file; keys that were changed have none.
    """

    source: str
    lines: LineMap


def read_resolved(
    study: str, assignments: Sequence[str] = (), *, load: Callable[[DataSettings], Splits] | None = None
) -> tuple[Study, Origin]:
    """Read a study by name or path, change some of its keys, and return it resolved, with its origin.

    Args:
        study: Name of a bundled study, or path of a YAML file, which may contain a resolved study.
        assignments: Assignments as in `assigned`; not for a resolved study.
        load: Loads the data of a study that violates rules, so that those of the data are reported with the others. A
            study that violates no other rule is left to `check_against_data`, where the data is loaded anyway.

    Raises:
        StudyNotFound: There is no such study.
        StudyError: The study violates rules, all of which the error lists, or an assignment is not possible.
    """
    path = find(study)
    document, lines = read_with_lines(path)
    if assignments and is_resolved(document):
        raise StudyError(f"{path}: --set cannot change a resolved study; use the study file that it was made from")
    for assignment in assignments:  # an error in a value of the command line must not point to a line of the file
        lines = lines.without(tuple(assignment.partition("=")[0].strip().split(".")))
    # Paths in the file are absolute already, so a relative one comes from --set, relative to the working directory.
    document = with_absolute_paths(assigned(document, assignments), Path())
    origin = Origin(str(path), lines)
    try:
        return study_of(document, source=origin.source, lines=lines, measure=dimensions), origin
    except StudyError as error:
        if load is None or not error.violations:
            raise
        study_of(document, source=origin.source, lines=lines, measure=lambda settings: dimensions_of(load(settings)))
        raise


def assigned(document: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a study as plain values with some keys changed; unknown keys are reported when the study is checked.

    Args:
        document: Content of a study file.
        assignments: Dotted keys and YAML values, such as ``retrain.seeds=[0, 1, 2]``; the last one of a key counts.

    Raises:
        StudyError: An assignment does not have the form ``key=value``, its value is not valid YAML, or its key leads
            through a value that is not a mapping.
    """
    changed = copy.deepcopy(dict(document))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise StudyError(
                f"--set takes key=value with a dotted key, such as budget.sample_passes=60000, got {assignment!r}"
            )
        _assign(changed, parts, _value(key, text))
    return changed


def _value(key: str, text: str) -> Any:
    try:
        return yaml_value(text)
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"--set {key}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def _assign(document: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    *parents, last = parts
    for depth, part in enumerate(parents, 1):
        inner = document.setdefault(part, {})
        if not isinstance(inner, dict):
            place = ".".join(parts[:depth])
            raise StudyError(f"--set {'.'.join(parts)}: {place} holds {inner!r}, which has no keys; set {place} itself")
        document = inner
    document[last] = value
