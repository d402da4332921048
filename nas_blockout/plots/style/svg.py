"""Figures as files: SVG that can be embedded in a page as it is, PDF for papers, and PNG.

The same figure always gives the same SVG and PDF: no dates, no random identifiers. Text stays text, colors come from
CSS variables if the page defines them, the background is transparent, and nothing outside the SVG is referenced.
"""

import io
import re
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from nas_blockout.plots.style.canvas import clean, missing_glyphs_are_no_warning
from nas_blockout.plots.style.theme import VARIABLES, styled

# None leaves an entry out. They would be the day and the version of matplotlib: the same study, another file.
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@styled
def to_svg(figure: Figure, *, name: str = "figure", description: str = "") -> str:
    """Return a figure as an ``<svg>`` element, to be embedded in a page or written to a file.

    Args:
        figure: The figure.
        name: Prefix of all identifiers, so that one page can contain several figures.
        description: Text alternative for screen readers.
    """
    out = io.StringIO()
    with missing_glyphs_are_no_warning():
        figure.savefig(out, format="svg", metadata=_METADATA, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration, which only a file may have
    # In a page, matplotlib's style sheet would apply to the page, and unused definitions are dead weight.
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>\s*", "", text)
    # Only identifiers that something refers to are kept, under a name of their own: a page may hold several figures.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    prefix = re.sub(r"[^a-z0-9-]+", "-", name.lower())
    text = re.sub(r"<[a-z][^>]*>", lambda tag: _tag(tag.group(), used, prefix), text)
    return re.sub(r"<svg[^>]*>", lambda match: _opening(match.group(), description), text, count=1).strip()


def standalone(svg: str, *, description: str = "") -> str:
    """Return an ``<svg>`` element of `to_svg` as a file: with a size, a white background, and its own colors.

    Args:
        svg: The element.
        description: Text alternative in place of that of the element, which may lean on the page; empty to keep it.
    """
    if description:
        svg = re.sub(r' aria-label="[^"]*"', lambda _: f' aria-label="{escape(clean(description))}"', svg, count=1)
    box = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', svg)
    assert box is not None, "to_svg writes a viewBox"
    width, height = float(box[1]), float(box[2])
    sized = svg.replace("<svg ", f'<svg width="{width * 1.6:.0f}" height="{height * 1.6:.0f}" ', 1)
    ground = f'<rect width="{width:g}" height="{height:g}" style="fill: #ffffff"/>'
    start = sized.index(">") + 1
    return f'<?xml version="1.0" encoding="utf-8"?>\n{sized[:start]}{ground}{sized[start:]}\n'


@styled
def to_pdf(figure: Figure) -> bytes:
    """Return a figure as a PDF of vectors, with its fonts in it as journals ask for them (TrueType, no Type 3)."""
    out = io.BytesIO()
    with missing_glyphs_are_no_warning():
        # Without the entries that are None, the file would name the day and the version of matplotlib.
        figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return out.getvalue()


@styled
def to_png(figure: Figure, path: Path, *, resolution: float = 144) -> None:
    """Write a figure as a PNG on white; `resolution` is in dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with missing_glyphs_are_no_warning():
        figure.savefig(path, format="png", dpi=resolution, facecolor="white", metadata={"Software": None})


def _tag(tag: str, used: set[str], prefix: str) -> str:
    """Return a tag with rounded numbers, CSS variables for colors, the page's font, and only identifiers in use."""
    tag = re.sub(r'(?<= [dxy]=")[^"]*', _rounded, tag)
    tag = re.sub(r'(?<= transform=")[^"]*', _shorter, tag)
    tag = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", tag)
    # matplotlib turns even upright text, by 0 degrees
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    return _themed(re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", tag))


def _rounded(match: re.Match[str]) -> str:
    path = re.sub(r"-?\d+\.\d{3,}(e-?\d+)?", lambda number: f"{float(number.group()):.2f}", match.group())
    return " ".join(path.split())


def _shorter(match: re.Match[str]) -> str:
    return re.sub(r"-?\d+\.\d{5,}", lambda number: f"{float(number.group()):.4f}", match.group())


def _themed(text: str) -> str:
    # The color itself is the fallback: the SVG looks the same in a page that defines no variables, and as a file.
    def variable(match: re.Match[str]) -> str:
        return f"{match[1]}: var(--{VARIABLES[match[2]]}, {match[2]})"

    colors = "|".join(VARIABLES)
    text = re.sub(rf"(fill|stroke): ({colors})", variable, text)
    # Texts inherit the font of the `svg` element, which is the one that the reader's system uses.
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    return re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;\"]*", _font, text)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 600; " if "bold" in match[1] or "700" in match[1] else ""
    return f"{weight}font-size: {match[2]}"


def _opening(tag: str, description: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None, "matplotlib writes a viewBox"
    width = box.group().split()[2]
    label = f' aria-label="{escape(clean(description))}"' if description else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} '
        f'role="img"{label} style="--width: {float(width):.0f}" font-family="system-ui, sans-serif" '
        'stroke-linejoin="round" stroke-linecap="butt">'
    )
