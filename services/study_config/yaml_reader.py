"""Study files as text: finding them by name or path, and reading plain values with the line of every key."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from nas_blockout.serialization import near
from services.renamed_keys import RENAMED, upgraded_study
from services.study_config import errors
from services.study_config.errors import LineMap, StudyError, StudyNotFound, one_line

MAX_FILE_BYTES = 1 << 20  # far more than any study needs, and still parsed in little time
MAX_DEPTH = 100  # nodes are composed by recursion, which libyaml does not bound
_PARSER: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # libyaml, where PyYAML was built with it: ten times faster


class _UniqueKeys(_PARSER):  # type: ignore[misc]  # either of the two
    """YAML without tags or repeated keys, of which PyYAML silently uses the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if not isinstance(key, Hashable):
                break  # which is refused below
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} occurs twice, at {name.start_mark}")
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def bundled() -> dict[str, Path]:
    """Return the study files in the package, by name."""
    # Found and not imported, as `importlib.resources` would: `list` asks for names, and torch takes seconds.
    package = find_spec("search_spaces")
    assert package is not None, "our own package"
    assert package.submodule_search_locations, "a folder"
    folder = Path(package.submodule_search_locations[0]) / "studies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(study: str) -> Path:
    """Return the file of a study, given as a path or as the name of a bundled study.

    Raises:
        StudyNotFound: There is no such study.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or "/" in study:
        if not path.is_file():
            raise StudyNotFound(f"there is no study file {study}")
        return path
    if study not in bundled():
        raise StudyNotFound(f"there is no bundled study {study!r}; {near(study, bundled())}")
    return bundled()[study]


def read_document(path: Path) -> dict[str, Any]:
    """Read a study file as plain values without checking them; version 1 is upgraded.

    Raises:
        StudyError: It is too large, not valid YAML, or not a mapping.
    """
    return read_with_lines(path)[0]


def read_with_lines(path: Path) -> tuple[dict[str, Any], LineMap]:
    """Read a study file as `read_document` does, and the lines of its keys.

    Relative paths, of ``data.folder`` and of the files of backbones and plug-ins, are relative to the folder of the
    file; those of weights in a bundled study to the current folder, since nobody can put any beside its file. They
    become absolute here, since workers run in other folders.

    Raises:
        StudyError: It is too large, not valid YAML, or not a mapping.
    """
    text = read_text(path)
    try:
        document = yaml_value(text)
    except (yaml.YAMLError, ValueError) as error:
        raise StudyError(f"{path}: not valid YAML: {one_line(str(error))}") from None
    if not isinstance(document, dict):
        raise StudyError(f"{path}: a study is a mapping of keys, got {type(document).__name__}")
    weights = Path() if path in bundled().values() else path.parent
    return with_absolute_paths(upgraded_study(document), path.parent, weights=weights), line_map(text)


def read_text(path: Path) -> str:
    """Return the text of a study file.

    Raises:
        StudyError: It is too large, or not UTF-8.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise StudyError(f"{path}: a study file has at most {MAX_FILE_BYTES} bytes, this one has {path.stat().st_size}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: a study file is UTF-8 text ({error})") from None


def yaml_value(text: str) -> Any:
    """Read YAML without tags, aliases or repeated keys."""
    _require_plain(text)
    return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  # a SafeLoader


def _require_plain(text: str) -> None:
    """Refuse aliases, which can turn a small file into gigabytes, and deep nesting, before any node is composed."""
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*name) are not allowed, at {event.start_mark}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested too deeply, more than {MAX_DEPTH} levels, at {event.start_mark}")


def with_absolute_paths(document: dict[str, Any], parent: Path, *, weights: Path | None = None) -> dict[str, Any]:
    """Return a study in which ``data.folder``, ``data.table`` and the files of backbones and plug-ins are absolute.

    Args:
        document: A study as plain values; a resolved study is returned unchanged.
        parent: Folder to which relative paths are relative.
        weights: Folder to which those of pretrained weights are relative; None for `parent`.
    """
    if is_resolved(document):
        return document
    code = partial(_absolute_code, parent=parent)
    data = dict.fromkeys(("folder", "table"), partial(_absolute, parent=parent))
    document = _with_paths(document, "data", {"name": code, "augment": code, **data})
    document = _with_paths(document, "training", {"loss": code})
    files: dict[str, Callable[[str], str]] = {
        "name": code,
        "factory": code,
        "weights": lambda text: _absolute(text, weights or parent),
    }
    document = _with_paths(document, "backbone", files)
    if isinstance(arms := document.get("arms"), dict):
        arms = {name: _arm_with_paths(arm, files) if isinstance(arm, dict) else arm for name, arm in arms.items()}
        document = {**document, "arms": arms}
    return document


def _arm_with_paths(arm: dict[str, Any], files: Mapping[str, Callable[[str], str]]) -> dict[str, Any]:
    arm = _with_paths(_with_paths(arm, "backbone", files), "method", {"name": files["name"]})
    arm = _with_paths(arm, "training", {"loss": files["name"]})
    if isinstance(spaces := arm.get("space"), list):
        arm = {**arm, "space": [files["name"](each) if isinstance(each, str) else each for each in spaces]}
    arm = _with_paths(_with_paths(arm, "searcher", {"name": files["name"]}), "pruner", {"name": files["name"]})
    return {**arm, "searcher": files["name"](arm["searcher"])} if isinstance(arm.get("searcher"), str) else arm


def _with_paths(document: dict[str, Any], section: str, absolute: Mapping[str, Callable[[str], str]]) -> dict[str, Any]:
    settings = document.get(section)
    if not isinstance(settings, dict):
        return document
    changed = {key: change(settings[key]) for key, change in absolute.items() if isinstance(settings.get(key), str)}
    return {**document, section: {**settings, **changed}} if changed else document


def _absolute(text: str, parent: Path) -> str:
    return str(parent.absolute() / Path(text).expanduser())


def _absolute_code(text: str, parent: Path) -> str:
    """Return the name of a factory or a plug-in with the absolute path of its file; any other name stays as it is."""
    place, colon, name = text.rpartition(":")
    return f"{_absolute(place, parent)}:{name}" if colon and place.endswith(".py") else text


def is_resolved(document: Any) -> bool:
    """Whether a document is a result of `Study.to_json` and not a study file written by hand."""
    arms = document.get("arms")
    return isinstance(arms, dict) and any(isinstance(arm, dict) and "experiment" in arm for arm in arms.values())


def node_tree(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text that `yaml_value` accepts."""
    return yaml.compose(text, Loader=_UniqueKeys)  # a SafeLoader


def line_map(text: str) -> LineMap:
    """Return the lines of the keys of a YAML text that `yaml_value` accepts."""
    root = node_tree(text)
    former: dict[str, set[str]] = {}
    for names in RENAMED.values():
        for old, new in names.items():
            former.setdefault(new, set()).add(old)
    return LineMap({(): 1} if root is None else dict(_lines(root, (), 1)), former)


def _lines(node: yaml.Node, path: errors.Path, line: int) -> Iterator[tuple[errors.Path, int]]:
    yield path, line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*path, key.value), key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _lines(item, (*path, position), item.start_mark.line + 1)
