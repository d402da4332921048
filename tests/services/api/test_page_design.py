"""Colors of the page: every text has a contrast of 4.5 or more to what is behind it, every border of a field 3 or more.

Computed from the style sheet by the formulas of WCAG 2.2, in light and in dark.
"""

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[3] / "services" / "static" / "service.css").read_text(encoding="utf-8")
GROUNDS = ("page", "card", "raised")  # what a text may stand on that has no background of its own
TEXT, PART = 4.5, 3.0


def palettes() -> dict[str, dict[str, str]]:
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in _blocks())
    return {"light": light, "dark": dark}


def _blocks() -> tuple[str, str]:
    first, _, rest = CSS.partition("@media (prefers-color-scheme: dark)")
    return first, rest.partition("* {")[0]


def rules() -> list[tuple[str, dict[str, str]]]:
    """Selectors and declarations, without the palettes."""
    body = re.sub(r"/\*.*?\*/", "", CSS.partition("* {")[2], flags=re.DOTALL)
    return [
        (selector.strip(), dict(re.findall(r"([\w-]+): ([^;]+);", declared)))
        for selector, declared in re.findall(r"([^{}]+)\{([^{}]*)\}", body)
    ]


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def named(value: str) -> list[str]:
    return re.findall(r"var\(--([\w-]+)\)", value)


def test_the_formula_gives_what_the_recommendation_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the usual example of just too little


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme):
    palette, found, checked = palettes()[scheme], [], 0
    for selector, declared in rules():
        for ink in named(declared.get("color", "")):
            own = named(declared.get("background", ""))
            for ground in own or GROUNDS:
                checked += 1
                ratio = contrast(palette[ink], palette[ground])
                if ratio < TEXT:
                    found.append(f"{selector}: {ink} on {ground} has {ratio:.2f}")
    assert found == []
    assert checked > 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fields_bars_and_the_focus_can_be_seen(scheme):
    palette = palettes()[scheme]
    pairs = [("line", ground) for ground in ("page", "card")] + [("link", ground) for ground in GROUNDS]
    pairs += [("main", "raised"), ("main", "card"), ("line", "card")]
    assert [(pair, ratio) for pair in pairs if (ratio := contrast(*(palette[name] for name in pair))) < PART] == []


def test_colors_are_named_once_and_both_schemes_have_all():
    both = palettes()
    assert both["light"].keys() == both["dark"].keys()
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b", CSS.partition("* {")[2].replace("#outcome", "")) == []


def test_nothing_is_fetched_from_elsewhere():
    static = Path(__file__).parents[3] / "services" / "static"
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert "://" not in (static / "service.js").read_text(encoding="utf-8")
