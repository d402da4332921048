"""How a report looks in a real browser: nothing overflows, overlaps, is fetched or complained about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.api.study_files import REPORT_POLICY
from services.files.study_dir import Folder
from services.report import ReportView, write
from services.report.page import TEMPLATES

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


COLUMN = """([name, column]) => [...document.querySelectorAll(`#table-${name} tbody tr`)].filter(row => !row.hidden)
  .map(row => row.cells[column].firstChild.textContent.trim())"""
MANY = """<div class="data"><div class="scroll">
<table><thead><tr><th>arm</th><th>score</th></tr></thead><tbody>%s</tbody></table></div></div><script>%s</script>"""


def test_tables_are_sorted_by_mouse_and_keyboard_and_filtered_by_words(whole_report: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.goto((whole_report / "report" / "index.html").as_uri())
    first = page.evaluate(COLUMN, ["cost", 0])
    assert len(first) == 7
    head = page.locator("#table-cost th", has_text="passes").first
    button = head.get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    passes = [int(text.replace(",", "")) for text in page.evaluate(COLUMN, ["cost", 1])]
    assert passes == sorted(passes)
    assert sorted(page.evaluate(COLUMN, ["cost", 0])) == sorted(first)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    descending = [int(text.replace(",", "")) for text in page.evaluate(COLUMN, ["cost", 1])]
    assert descending == sorted(passes, reverse=True)
    button.click()
    assert head.get_attribute("aria-sort") is None
    assert page.evaluate(COLUMN, ["cost", 0]) == first, "as it was written"
    page.locator("#table-arms th", has_text="test accuracy").get_by_role("button").click()
    accuracies = [float(text) for text in page.evaluate(COLUMN, ["arms", 1])]
    assert accuracies == sorted(accuracies), "by the number, not by the interval below it"
    page.get_by_text("All 71 trials").click()
    page.locator("#table-trials input").fill("bayesian PRUNED")
    page.locator("#table-trials output", has_text="of 71 rows").wait_for()
    shown = page.evaluate(COLUMN, ["trials", 0])
    assert set(shown) == {"bayesian"}
    assert page.locator("#table-trials output").text_content() == f"{len(shown)} of 71 rows"
    page.close()


def test_ten_thousand_rows_are_sorted_with_what_has_no_value_last(browser: Any) -> None:
    numbers = [(number * 7919) % 10_007 - 5000 for number in range(10_000)]
    cells = ["\N{EN DASH}" if number % 100 == 0 else f"{number:,}".replace("-", "\N{MINUS SIGN}") for number in numbers]
    rows = "".join(f"<tr><th>arm {index}</th><td>{cell}</td></tr>" for index, cell in enumerate(cells))
    page = browser.new_page()
    page.set_content(MANY % (rows, (TEMPLATES / "report.js").read_text(encoding="utf-8")))
    page.locator("th", has_text="score").get_by_role("button").click()
    found = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)")
    known = sorted(number for number in numbers if number % 100)
    assert [int(text.replace(",", "").replace("\N{MINUS SIGN}", "-")) for text in found[: len(known)]] == known
    assert set(found[len(known) :]) == {"\N{EN DASH}"}
    page.locator("input").fill("arm 9999")
    page.locator("output", has_text="1 of 10,000 rows").wait_for()
    page.close()


def test_as_the_service_sends_it_the_report_sorts_and_downloads_and_nothing_else_runs(
    whole_report: Path, browser: Any
) -> None:
    html = (whole_report / "report" / "index.html").read_text(encoding="utf-8")
    html = html.replace("</main>", "<script>document.title = 'injected'</script><p onclick=\"x()\">p</p></main>")
    page = browser.new_page()
    headers = {"content-security-policy": REPORT_POLICY}
    page.route(
        "http://report.test/**", lambda route: route.fulfill(body=html, content_type="text/html", headers=headers)
    )
    page.goto("http://report.test/")
    assert page.title() == "made-up · nas-blockout"
    assert page.evaluate("self.origin") == "null", "it is nobody's page"
    page.locator("#table-cost th", has_text="passes").first.get_by_role("button").click()
    assert page.locator("#table-cost th[aria-sort]").count() == 1
    with page.expect_download() as started:
        page.get_by_role("link", name="CSV of Cost").click()
    assert started.value.suggested_filename == "cost.csv"
    assert Path(started.value.path()).read_bytes() == (whole_report / "report" / "tables" / "cost.csv").read_bytes()
    page.close()


def test_without_scripts_everything_is_there(whole_report: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((whole_report / "report" / "index.html").as_uri())
    assert page.locator("button, input").count() == 0
    assert page.locator("#table-cost tbody tr").count() == 7
    context.close()


def test_the_checks_can_fail(browser: Any) -> None:
    page = browser.new_page()
    page.set_content(CLASHING)
    assert page.evaluate(OVERLAPS) == ["one text | another"]
    page.set_content(AWAY)
    assert page.evaluate(OUTSIDE) == ["a text that is longer than its drawing"]
    page.set_content("<body style='background: white'><p style='color: #aaa'>faint</p>")
    assert page.evaluate(FAINT) == ["faint"]
    page.close()
