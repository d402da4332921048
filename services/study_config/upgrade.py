"""Rewrites a study file of version 1 as version 2: keys are renamed in the text, so comments and order stay."""

from collections.abc import Iterator, Mapping

import yaml

from services.renamed_keys import (
    BACKGROUND_OF_VERSION_1,
    INSIDE,
    RENAMED,
    RENAMED_VALUES,
    SETTINGS_OF_VERSION_1,
    TRAINING_OF_VERSION_1,
    upgraded_study,
)
from services.study_config.errors import StudyError
from services.study_config.yaml_reader import node_tree, yaml_value

_Edit = tuple[int, int, str]  # start and end in the text, and the replacement


def upgraded_text(text: str, *, source: str) -> str:
    """Return the text of a study file in version 2, with its comments; text of version 2 is returned unchanged.

    Args:
        text: Text of a file that `read_with_lines` accepts.
        source: Name of the file.

    Raises:
        StudyError: The keys cannot be renamed one by one, as in a resolved study; the file can still be used unchanged.
    """
    document = yaml_value(text)
    if document.get("schema_version") == 2:
        return text
    root = node_tree(text)
    assert isinstance(root, yaml.MappingNode), "a study is a mapping"
    upgraded = text
    # From the end of the text to its start, so that the positions of the remaining edits stay valid.
    for start, end, replacement in sorted([*_edits(root, "study", text), *_training(root, text)], reverse=True):
        upgraded = upgraded[:start] + replacement + upgraded[end:]
    # The same upgrade of the parsed values is what every other reader uses: the new text must mean exactly the same.
    if yaml_value(upgraded) != upgraded_study(document):
        raise StudyError(
            f"{source}: this file of version {document.get('schema_version')} cannot be rewritten key by key; "
            "it can be used as it is, and `nas-blockout validate` prints it resolved"
        )
    return upgraded


def _edits(mapping: yaml.MappingNode, kind: str, text: str) -> Iterator[_Edit]:
    """Yield the edits of a mapping; `services.renamed_keys` makes the same changes to plain values."""
    names, inside = RENAMED.get(kind, {}), INSIDE.get(kind, {})
    for key, value in mapping.value:
        name = names.get(key.value, key.value)
        if name != key.value:
            yield _place(key, name)
        within = inside.get(name, inside.get("*"))
        if kind == "study" and name == "schema_version":
            yield _place(value, "2")
        elif isinstance(value, yaml.MappingNode) and within is not None:
            yield from _edits(value, within, text)
            if kind == "arm" and name == "method":
                for method, settings in SETTINGS_OF_VERSION_1.items():
                    yield from _added(value, method, settings, text)
            if kind == "study" and name == "data":
                yield from _added(value, "imagefolder", {"background": BACKGROUND_OF_VERSION_1}, text)
        elif isinstance(value, yaml.ScalarNode) and (new := RENAMED_VALUES.get((kind, name), {}).get(value.value)):
            yield _place(value, new)


def _added(mapping: yaml.MappingNode, named: str, settings: Mapping[str, str | None], text: str) -> Iterator[_Edit]:
    """Yield an edit that inserts, after a name, settings with what version 1 did where it said nothing."""
    for key, value in mapping.value:
        if key.value == "name" and value.value == named:
            end, words = value.end_mark.index, [f"{name}: {setting or 'null'}" for name, setting in settings.items()]
            if mapping.flow_style:
                yield end, end, "".join(f", {word}" for word in words)
            else:  # on lines of their own, after the comment that may follow the name
                line_end = text.find("\n", end)
                end = len(text) if line_end < 0 else line_end
                yield end, end, "".join(f"\n{' ' * key.start_mark.column}{word}" for word in words)


def _training(study: yaml.MappingNode, text: str) -> Iterator[_Edit]:
    """Yield an edit that inserts what version 1 had by default among the settings of the training, or as the first."""
    present = {key.value: (key, value) for key, value in study.value}
    if "training" not in present:
        first = study.value[0][0].start_mark.index
        settings = "".join(f"  {name}: {value}\n" for name, value in TRAINING_OF_VERSION_1.items())
        yield first, first, f"training:\n{settings}"
        return
    _, training = present["training"]
    if not isinstance(training, yaml.MappingNode):
        return
    given = {key.value for key, _ in training.value}
    for name, value in TRAINING_OF_VERSION_1.items():
        if name in given:
            continue
        if training.flow_style:
            end = training.start_mark.index + 1
            yield end, end, f"{name}: {value}{', ' * bool(training.value)}"
        else:
            key = training.value[0][0]
            yield key.start_mark.index, key.start_mark.index, f"{name}: {value}\n{' ' * key.start_mark.column}"


def _place(node: yaml.Node, replacement: str) -> _Edit:
    return node.start_mark.index, node.end_mark.index, replacement
