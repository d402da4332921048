"""What of a study is nobody else's business: where it lies on a machine, and secrets. Both are kept out of a bundle."""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.settings import Settings

TEXTS = frozenset({".yaml", ".json", ".csv", ".md", ".txt", ".html", ".svg", ".tex"})
_INSIDE = re.compile(rb"data:(text/csv|application/x-tex);base64,([A-Za-z0-9+/=]+)")
_FEWEST = 6  # characters of a secret: shorter ones stand in texts by chance


class BundleError(ValueError):
    """A bundle cannot be made of a study, or a file is none, or is damaged."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """The private parts of texts.

    Args:
        folders: Of the user and of the installation: what lies in them is written relative to them.
        secrets: Values that no file may hold.
    """

    folders: Sequence[str]
    secrets: Sequence[str]

    @classmethod
    def of(cls, settings: Settings, home: Path) -> "Privacy":
        """Return the privacy of an installation and of a user, whose home is given."""
        folders = {str(path) for path in _places(settings, home) if len(path.parts) > 1}
        # The longest first: the home of the installation is often in that of the user.
        return cls(tuple(sorted(folders, key=lambda folder: (-len(folder), folder))), tuple(_secrets(settings)))

    def cleaned(self, name: str, data: bytes) -> tuple[bytes, int]:
        """Return a file without paths of the user, and how many there were.

        Args:
            name: Of the file, whose ending says whether it is a text.
            data: Its content.

        Raises:
            BundleError: It holds a secret.
        """
        if Path(name).suffix not in TEXTS:
            return data, 0
        found = 0

        def inside(match: re.Match[bytes]) -> bytes:
            nonlocal found
            clean, count = self._text(name, base64.b64decode(match[2]))
            found += count
            return b"data:" + match[1] + b";base64," + base64.b64encode(clean)

        text = _INSIDE.sub(inside, data)  # pages hold tables as files
        clean, count = self._text(name, text)
        return clean, found + count

    def _text(self, name: str, data: bytes) -> tuple[bytes, int]:
        for secret in self.secrets:
            if secret.encode() in data:
                raise BundleError(f"{name} holds a secret of this installation; take it out of there first")
        found = 0
        for folder in self.folders:
            # As a whole part of a path: what only begins alike is another folder.
            pattern = re.compile(rb"(?<![\w./~-])(?:file://)?" + re.escape(folder.encode()) + rb"(/|(?![\w.-]))")
            data, count = pattern.subn(lambda match: b"" if match[1] else b".", data)
            found += count
        return data, found


def _places(settings: Settings, home: Path) -> Iterator[Path]:
    for place in filter(None, (settings.home, settings.data, home)):
        yield place.absolute()
        yield place.resolve()


def _secrets(settings: Settings) -> Iterator[str]:
    for value in (settings.api_token, *(_password(url) for url in (settings.store_url, settings.tracking_uri))):
        for written in {str(value), unquote(str(value))} if value else ():
            if len(written) >= _FEWEST:
                yield written


def _password(url: str | None) -> str | None:
    try:
        return urlsplit(url or "").password
    except ValueError:
        return None
