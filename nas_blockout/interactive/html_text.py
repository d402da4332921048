"""Tables and pictures as HTML for notebooks; every text is escaped, and nothing is loaded from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

_CELL = "padding:2px 10px;text-align:"


def text_of(value: Any) -> str:
    """Return a value as a text for people: whole numbers in groups of three, a minus sign where there is none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> str:
    """Return a table as HTML; numbers stand at the right, texts at the left.

    Args:
        columns: Headings.
        rows: Values, as many as there are columns.
        caption: Above the table.
    """
    right = [all(not isinstance(row[place], str) for row in rows) for place in range(len(columns))]
    aligned = ["right" if each else "left" for each in right]
    head = "".join(
        f'<th style="{_CELL}{side}">{escape(name)}</th>' for name, side in zip(columns, aligned, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{_CELL}{side}">{escape(text_of(value))}</td>' for value, side in zip(row, aligned, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    above = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def heading(text: str, *, details: Sequence[str] = ()) -> str:
    """Return a line in bold with lines below it, as HTML."""
    return f"<p><b>{escape(text)}</b>{''.join(f'<br>{escape(each)}' for each in details)}</p>"


def picture(png: bytes, *, description: str) -> str:
    """Return a picture as HTML that holds it.

    Args:
        png: The picture as a PNG file.
        description: What it shows, for who cannot see it.
    """
    content = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" style="max-width:100%" src="data:image/png;base64,{content}">'
