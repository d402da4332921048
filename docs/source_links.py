"""Links to source files: the repository resolves them; the built site has no sources, so there only the text stays."""

import re
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).resolve().parent
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(((?:\.\./)+[^)\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave the folder of the docs by their text; MkDocs calls this for every page."""
    folder = (_DOCS / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        inside = (folder / link[2].partition("#")[0]).resolve().is_relative_to(_DOCS)
        return link[0] if inside else link[1]

    return _LINK.sub(replaced, markdown)
