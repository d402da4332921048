"""Formulas of the docs as MathML, which browsers draw by themselves: no script, no font and no network is needed."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what the Markdown extension arithmatex marked; MkDocs calls this for every page."""
    return _FORMULA.sub(lambda found: _mathml(found[2], "inline") or _mathml(found[3], "block"), content)


def _mathml(latex: str | None, display: str) -> str:
    return "" if latex is None else convert(html.unescape(latex).strip(), display=display)
