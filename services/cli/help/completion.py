"""What a shell proposes for names: bundled studies, studies of the home folder, their arms.

Only names of files are read: a shell waits for the answer, and nothing may be created or migrated by pressing a key.
Whatever goes wrong proposes nothing.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from services.settings import Settings, SettingsError


def bundled_studies(incomplete: str) -> list[str]:
    """Return bundled studies; where none begins so, shells complete files by themselves."""
    package = find_spec("search_spaces")  # as `yaml_reader.bundled`, which takes YAML and more to import
    folders = (package and package.submodule_search_locations) or ()
    names = (path.stem for folder in folders for path in Path(folder).glob("studies/*.yaml"))
    return sorted(_matching(names, incomplete))


def stored_studies(incomplete: str) -> list[str]:
    """Return studies whose folders lie in the home folder; likewise."""
    return sorted(_matching((folder.name for folder in _folders()), incomplete))


def arms(ctx: Any, incomplete: str) -> list[str]:
    """Return the arms of the study that the command line names, once it has a result."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever the file holds
        (folder,) = [folder for folder in _folders() if folder.name == ctx.params.get("study")]
        return sorted(_matching(json.loads((folder / "comparison.json").read_text())["arms"], incomplete))
    return []


def _folders() -> Iterator[Path]:
    with suppress(OSError, SettingsError):
        runs = Settings.from_environment().home / "runs"
        yield from (folder for folder in runs.iterdir() if (folder / "study.yaml").is_file())


def _matching(names: Iterable[str], incomplete: str) -> Iterator[str]:
    return (name for name in names if name.startswith(incomplete))
