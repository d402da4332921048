"""Code in files that travels with a submitted study: as a package whose name has the hash of its content.

A job runs in a copy of its working folder, whose path differs from node to node; but Ray lets every node import what
lies in it. So ``nets.py:Small`` becomes ``nas_blockout_shipped_1a2b3c4d5e6f.nets:Small``. Other content is another
name, and so another study: no trial is made with code that the study was not begun with.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_blockout.backbones.module import ModuleSettings
from nas_blockout.plugins.named_code import file_of
from services.plugin_records import used
from services.renamed_keys import study_hash
from services.study_config.errors import StudyError
from services.study_config.resolved_study import Study

MOST_BYTES = 4 * 2**20  # of source text; Ray keeps the packages of jobs in the memory of its head
PREFIX = "nas_blockout_shipped_"
_INIT = '''"""Code that was submitted with a study; its files import each other as they do side by side."""

import sys
from pathlib import Path

if (_folder := str(Path(__file__).parent)) not in sys.path:
    sys.path.append(_folder)  # last, so that it hides no installed package
'''


@dataclass(frozen=True, slots=True)
class Shipment:
    """A study as it is submitted.

    Args:
        document: The resolved study, with code in files named by where it will be.
        files: Text of the files of this code, by path in the working folder of the job; empty without such code.
    """

    document: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def hash(self) -> str:
        """Hash of the study, as the job will have it."""
        return study_hash(self.document)


def shipment_of(study: Study) -> Shipment:
    """Return a study with all code in files that it names, and with the modules beside these that they import.

    Raises:
        StudyError: A file is missing, two files in different folders have one name, or they are too large.
    """
    document = study.to_json()
    places = sorted(_places(study))
    if not places:
        return Shipment(document, {})
    sources = _sources([file for place in places if (file := file_of(place)) is not None])
    total = hashlib.sha256()
    for name, text in sorted(sources.items()):
        total.update(f"{name}\0{len(text)}\0".encode() + text)
    package = f"{PREFIX}{total.hexdigest()[:12]}"
    renamed = {place: _shipped_name(place, package) for place in places}
    files = {f"{package}/{name}": text for name, text in sources.items()}
    return Shipment(_replaced(document, renamed), {f"{package}/__init__.py": _INIT.encode(), **files})


def _places(study: Study) -> Iterator[str]:
    """Yield the names of all code in files that the arms of a study use."""
    for arm in study.arms.values():
        backbone = arm.experiment.backbone
        names = [origin.place for _, origin in used(*arm.code)]
        names += [backbone.factory] if isinstance(backbone, ModuleSettings) else []
        yield from (name for name in names if file_of(name) is not None)


def _shipped_name(place: str, package: str) -> str:
    path, _, name = place.rpartition(":")
    return f"{package}.{Path(path).stem}:{name}"


def _sources(files: list[Path]) -> dict[str, bytes]:
    """Return the texts of files and of the modules beside them that they import, by file name."""
    found: dict[str, bytes] = {}
    origins: dict[str, Path] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        known = origins.setdefault(file.name, file)
        if file.name in found:
            if known.resolve() != file.resolve():
                raise StudyError(f"code in files travels side by side, got two of one name: {known} and {file}")
            continue
        if not file.stem.isidentifier():
            raise StudyError(f"code that travels is imported by its name, got {file}; name it as Python names modules")
        try:
            found[file.name] = file.read_bytes()
        except OSError as error:
            raise StudyError(f"{file}: cannot be read: {error.strerror}") from error
        waiting += _beside(file, found[file.name])
    if (total := sum(map(len, found.values()))) > MOST_BYTES:
        raise StudyError(
            f"code in files that travels with a study has at most {MOST_BYTES:,} bytes, got {total:,} in "
            f"{', '.join(sorted(found))}; install it as a package on the cluster"
        )
    return found


def _beside(file: Path, text: bytes) -> Iterator[Path]:
    """Yield the files beside a file whose modules it imports."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # whoever imports it says so, with its line
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            beside = file.with_name(f"{name.partition('.')[0]}.py")
            if beside.is_file():
                yield beside


def _replaced(value: Any, renamed: Mapping[str, str]) -> Any:
    """Return plain values in which every text, and every key, that names code in a file names where it will be."""
    if isinstance(value, Mapping):
        return {renamed.get(key, key): _replaced(each, renamed) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(each, renamed) for each in value]
    return renamed.get(value, value) if isinstance(value, str) else value
