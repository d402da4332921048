"""Paths of the server, which errors and messages of studies must not name: what lies where is for its operator."""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.api.errors import RequestError, translated
from services.settings import Settings, sqlite_path
from services.store import StudyStatus

_PACKAGE = Path(__file__).parents[3]


class ServerPaths:
    """Replaces the folders of a service in texts by words.

    Args:
        settings: Settings of the service.
    """

    def __init__(self, settings: Settings) -> None:
        words = {str(path): word for path, word in _folders(settings) if len(path.parts) > 1}
        longest = sorted(words, key=len, reverse=True)  # the data may lie in the home folder, and is named as the data
        # The end of a name: /home/ann is not to be replaced in /home/anna.
        self._pattern = re.compile(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, longest))})(?![\w-])")
        self._words = words

    def hide(self, text: str) -> str:
        """Return a text without the folders of the service."""
        return self._pattern.sub(lambda found: self._words[found[0]], text) if "/" in text else text

    def without(self, document: Any) -> Any:
        """Return a JSON document without them in its values."""
        if isinstance(document, str):
            return self.hide(document)
        if isinstance(document, Mapping):
            return {key: self.without(value) for key, value in document.items()}
        return [self.without(value) for value in document] if isinstance(document, list) else document

    def error(self, error: Exception) -> RequestError:
        """Return the error of a request for any error, without them."""
        found = translated(error)
        found.problem = type(found.problem).model_validate(self.without(found.problem.model_dump()))
        return found

    def status(self, status: StudyStatus) -> StudyStatus:
        """Return the status of a study without them in its message and events."""
        events = tuple(replace(event, detail=self.without(event.detail)) for event in status.events)
        return replace(status, row=replace(status.row, message=self.hide(status.row.message)), events=events)


def _folders(settings: Settings) -> Iterator[tuple[Path, str]]:
    yield Path(tempfile.gettempdir()), "(temporary folder)"
    yield Path.home(), "(home of the service)"
    yield Path(sys.prefix), "(Python)"
    yield _PACKAGE, "(nas_blockout)"
    if settings.store_url.startswith("sqlite:"):
        folder = sqlite_path(settings.store_url).parent
        if not folder.is_relative_to(settings.home):  # the default, which is named as a part of the home folder
            yield folder, "(folder of the store)"
    for path, word in ((settings.data, "(data)"), (settings.weights, "(weights)"), (settings.home, "(home)")):
        if path is not None:
            yield path, word
    if settings.artifacts is not None:
        yield Path(settings.artifacts.removeprefix("file://")), "(shared storage)"
