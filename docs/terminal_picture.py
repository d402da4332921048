"""Draws the end of a run in the terminal as an SVG for README.md, from the text of the run that stands there.

Lines appear one after the other, as far as the reader's system allows motion; the last picture stays. Run it after the
text has changed: `python docs/terminal_picture.py`.
"""

import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "quickstart-run.svg"
COMMAND = "$ nas-blockout run quickstart"
_RUN = re.compile(r"<!-- quickstart:begin -->\n```\n(.*?)```\n<!-- quickstart:end -->", re.DOTALL)
_WIDTH, _HEIGHT, _MARGIN, _BAR = 7.2, 16, 18, 34  # pixels: of a character, of a line, around the text, of the title bar
_SECONDS_A_LINE = 0.08
_FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" \
aria-label="The end of nas-blockout run quickstart: the table of arms, the verdict, the model to ship">
<style>
text {{ font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }}
text {{ fill: #d7dce2; }}
.command {{ fill: #8fd694; }} .verdict {{ fill: #f2c879; }} .ship {{ fill: #8cc8ff; }}
@media (prefers-reduced-motion: no-preference) {{
text {{ animation: appear 1ms steps(1) backwards; }} @keyframes appear {{ from {{ opacity: 0; }} }}
}}
</style>
<rect width="100%" height="100%" rx="8" fill="#1b1f27"/>
<circle cx="20" cy="17" r="6" fill="#ff5f57"/><circle cx="40" cy="17" r="6" fill="#febc2e"/>\
<circle cx="60" cy="17" r="6" fill="#28c840"/>
{lines}
</svg>
"""


def shown() -> list[str]:
    """Return the lines of the run that README.md shows, without the table of differences.

    Raises:
        ValueError: README.md has no such run.
    """
    found = _RUN.search(README.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("README.md shows no run between <!-- quickstart:begin --> and <!-- quickstart:end -->")
    text = re.sub(r"^differences in .*?^└[^\n]*\n", "", found[1], flags=re.DOTALL | re.MULTILINE)
    return [COMMAND, *text.rstrip("\n").split("\n")]


def drawn(lines: list[str]) -> str:
    """Return lines of a terminal as SVG: each is as wide as its characters, whatever font the reader has."""
    texts = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        kind = "command" if number == 0 else "ship" if line.startswith("Ship ") else "verdict" if _tells(line) else ""
        start = len(line) - len(line.lstrip())
        texts.append(
            f'<text x="{_MARGIN + start * _WIDTH:.1f}" y="{_BAR + _MARGIN + number * _HEIGHT}" '
            f'textLength="{len(line.strip()) * _WIDTH:.1f}" lengthAdjust="spacingAndGlyphs" '
            f'style="animation-delay: {number * _SECONDS_A_LINE:.2f}s"'
            f"{f' class={kind!r}' if kind else ''}>{escape(line.strip())}</text>"
        )
    width = max(map(len, lines)) * _WIDTH + 2 * _MARGIN
    return _FRAME.format(width=width, height=_BAR + len(lines) * _HEIGHT + _MARGIN, lines="\n".join(texts))


def _tells(line: str) -> bool:
    """Whether a line begins the verdict."""
    return line.startswith(("Yes", "No ", "No,", "Not shown"))


if __name__ == "__main__":
    PICTURE.write_text(drawn(shown()), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
