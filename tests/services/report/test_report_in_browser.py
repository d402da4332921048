"""How a report looks in a real browser: nothing overflows, overlaps, is fetched or complained about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.files.study_dir import Folder
from services.report import ReportView, write

pytestmark = pytest.mark.slow(20)

OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(text => !text.getAttribute('transform'));
  const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], index) => boxes.slice(index + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 0.45 * Math.min(p.height, q.height)
  ).map(([b]) => `${a} | ${b}`));
})"""
OUTSIDE = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(text => text.textContent);
})"""
FAINT = """() => [...document.querySelectorAll('p, td, th, dt, dd, figcaption, caption, summary, text')].filter(e => {
  const linear = share => share <= .04 ? share / 12.92 : ((share + .055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).map(part => linear(part / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const style = getComputedStyle(e);
  const ink = light(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
  const page = light(getComputedStyle(document.body).backgroundColor);
  return (Math.max(ink, page) + .05) / (Math.min(ink, page) + .05) < 4.5;
}).map(e => e.textContent.slice(0, 60))"""
CLASHING = """<svg><text y="20">one text</text><text x="10" y="22">another</text></svg>"""
AWAY = """<svg width="50" height="50"><text y="20">a text that is longer than its drawing</text></svg>"""


@pytest.mark.parametrize("study", ["seven arms", "twelve arms and 94 classes", "one seed"])
def test_nothing_overflows_overlaps_or_complains(
    study: str, made_up: Callable[..., ReportView], request: pytest.FixtureRequest, browser: Any, tmp_path: Path
) -> None:
    if study == "one seed":
        path = write(made_up(arms=["dense", "blockout"], seeds=1, trials=1), Folder(tmp_path))
    else:
        folder: Path = request.getfixturevalue("whole_report" if study == "seven arms" else "large_report")
        path = folder / "report" / "index.html"
    said: list[str] = []
    asked: set[str] = set()
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "light")):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERLAPS) == []
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(FAINT) == []
        page.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}


def test_on_paper_everything_but_the_trials_is_open_and_black_on_white(
    made_up: Callable[..., ReportView], browser: Any, tmp_path: Path
) -> None:
    path = write(made_up(arms=["dense", "blockout"], seeds=2), Folder(tmp_path))
    page = browser.new_page(color_scheme="dark")
    page.goto(path.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    closed = """[...document.querySelectorAll('details')].filter(e => !e.lastElementChild.checkVisibility())
      .map(e => e.firstElementChild.textContent)"""
    assert page.evaluate("document.querySelectorAll('details').length") == 5
    assert page.evaluate(closed) == ["All 16 trials"]
    assert page.pdf().startswith(b"%PDF")
    page.close()


def test_the_checks_can_fail(browser: Any) -> None:
    page = browser.new_page()
    page.set_content(CLASHING)
    assert page.evaluate(OVERLAPS) == ["one text | another"]
    page.set_content(AWAY)
    assert page.evaluate(OUTSIDE) == ["a text that is longer than its drawing"]
    page.set_content("<body style='background: white'><p style='color: #aaa'>faint</p>")
    assert page.evaluate(FAINT) == ["faint"]
    page.close()
