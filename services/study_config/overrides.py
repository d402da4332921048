"""``--set key=value``: keys of a study file that are changed on the command line."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from services.study_config.errors import StudyError
from services.study_config.resolution import study_of
from services.study_config.resolved_study import Study
from services.study_config.yaml_reader import find, is_resolved, read_with_lines, with_absolute_folder, yaml_value


def read_resolved(study: str, assignments: Sequence[str] = ()) -> tuple[Study, str]:
    """Return a study given by name or path, with some keys changed and every setting resolved, and its file.

    Args:
        study: A bundled study by name, or the path of a YAML file; of a study as people write it or a resolved one.
        assignments: As `assigned` takes them.

    Raises:
        StudyNotFound: There is no such study.
        StudyError: It breaks rules, all of which are told, an assignment does, or keys of a resolved study are to be
            changed.
    """
    path = find(study)
    document, lines = read_with_lines(path)
    if assignments and is_resolved(document):
        raise StudyError(f"{path}: --set changes study files, this one is resolved; change the one that it came from")
    for assignment in assignments:
        lines = lines.without(tuple(assignment.partition("=")[0].strip().split(".")))
    # A relative folder that is given here is meant from where the command was given.
    document = with_absolute_folder(assigned(document, assignments), Path())
    return study_of(document, source=str(path), lines=lines), str(path)


def assigned(document: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a study as plain values with some keys changed; whether they exist is found when it is checked.

    Args:
        document: What a study file holds.
        assignments: Dotted keys and YAML values, such as ``retrain.seeds=[0, 1, 2]``; the last one of a key holds.

    Raises:
        StudyError: An assignment is no ``key=value``, its value is no YAML, or its key leads through a value.
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise StudyError(f"--set {key}: the value is no valid YAML: {' '.join(str(error).split())}") from None


def _assign(document: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    *parents, last = parts
    for depth, part in enumerate(parents, 1):
        inner = document.setdefault(part, {})
        if not isinstance(inner, dict):
            place = ".".join(parts[:depth])
            raise StudyError(f"--set {'.'.join(parts)}: {place} holds {inner!r}, which has no keys; set {place} itself")
        document = inner
    document[last] = value
