"""The page in a real browser: its script, its keyboard, phones, and what it asks for; without script, too."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from services.api import application
from services.api.health import Probes
from services.store import Store

PATIENCE = 60_000
# Elements that a reader of the screen would not name, and headings that leave out a level.
UNNAMED = """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, progress')]
  .filter(e => !e.hidden && !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()))
  .map(e => e.outerHTML)"""
LEVELS = "() => [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))"
REPEATED = """() => {
  const all = [...document.querySelectorAll('[id]')].map(e => e.id);
  return all.filter((id, place) => all.indexOf(id) !== place);
}"""


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def address(settings, store, served) -> str:
    return str(served(application(settings, store, probes=Probes({}))))


@pytest.fixture
def page(browser: Any, address: str, store: Store) -> Iterator[Any]:
    """A page on which an administrator has logged in; it asks no other server for anything, and no script fails."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        found = context.new_page()
        found.set_default_timeout(PATIENCE)
        asked, failed = [], []
        found.on("request", lambda request: asked.append(request.url))
        found.on("pageerror", lambda error: failed.append(str(error)))
        found.on("console", lambda said: failed.append(said.text) if "Content Security" in said.text else None)
        enter(found, address, store)
        yield found
        assert failed == []
        assert [url for url in asked if not url.startswith((address, "data:"))] == []


def enter(page: Any, address: str, store: Store) -> None:
    page.goto(f"{address}/login")
    page.get_by_label("Token").fill(store.create_token("", owner="ann", scope="admin")[1])
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Studies").wait_for()


def test_a_study_is_written_checked_and_submitted(page, address, study, store):
    page.get_by_role("link", name="New study").click()
    page.get_by_label("Begin with").select_option("empty")
    page.get_by_role("button", name="Load").click()
    text = page.get_by_label("The study, as YAML")
    assert "name: my-study" in text.input_value()
    numbers = page.locator("#gutter li").count()
    text.press("Control+End")
    text.press("Enter")
    text.type("  wrong: {method: {name: dropuot}}")
    assert page.locator("#gutter li").count() == numbers + 1
    page.get_by_role("button", name="Check and estimate").click()
    page.get_by_role("alert").get_by_text("no such method").first.wait_for()
    assert page.locator("#gutter .wrong").inner_text().split()[0] == str(numbers + 1)
    assert page.url.endswith("/new?example=empty")  # nothing was loaded, so that the text keeps its history
    assert "1 error" in page.locator("#announcement").inner_text()
    page.get_by_role("link", name=f"Line {numbers + 1}").first.click()
    assert "dropuot" in page.evaluate(
        "getSelection().toString() || yaml.value.slice(yaml.selectionStart, yaml.selectionEnd)"
    )
    text.fill(json.dumps(study))
    page.get_by_role("button", name="Check and estimate").click()
    page.get_by_text("tiny is valid").wait_for()
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("heading", name="tiny", exact=True).wait_for()
    assert store.queued_study("tiny").state == "queued"


def test_progress_arrives_by_the_stream_of_events(page, address, client, study, store):
    client("ann").post("/v1/studies", json=study)
    with page.expect_request(lambda request: request.url.endswith("/v1/studies/tiny/events")):
        page.goto(f"{address}/studies/tiny")
    page.evaluate("document.querySelector('#status').setAttribute('hx-trigger', 'happened')")  # no polling
    page.evaluate("htmx.process(document.querySelector('#status'))")
    store.acquire_lease("worker", seconds=600)
    page.locator("#state", has_text="running").wait_for()
    assert page.locator("#announcement").inner_text() == "tiny is running"


def test_every_page_fits_a_phone_and_names_what_is_on_it(page, address, by_hand, client, study):
    client("bob").post("/v1/studies", json=study)
    page.set_viewport_size({"width": 390, "height": 800})
    for path in (
        "/",
        "/queue",
        "/new?example=quickstart",
        "/deleted",
        "/studies/by-hand",
        "/studies/tiny",
        "/studies/tiny/cancel",
    ):
        page.goto(f"{address}{path}")
        page.wait_for_function("document.documentElement.scrollWidth === 390")
        assert page.evaluate(UNNAMED) == [], path
        assert page.evaluate(REPEATED) == [], path
        levels = page.evaluate(LEVELS)
        assert levels[0] == 1, path
        assert all(after - before <= 1 for before, after in pairwise(levels)), path
        assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1


def test_the_form_is_reached_and_sent_by_the_keyboard(page, address):
    page.goto(f"{address}/new?example=empty")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert (
            page.evaluate(
                "getComputedStyle(document.activeElement.closest('.editor') ?? document.activeElement).outlineStyle"
            )
            != "none"
        )
        if reached[-1] == "yaml":
            page.keyboard.press("Escape")
    assert [each for each in reached if each] == ["example", "load", "yaml", "name", "check", "submit"]


def test_without_script_the_form_checks_and_submits(browser, address, study, store):
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        enter(page, address, store)
        page.goto(f"{address}/new")
        page.get_by_label("The study, as YAML").fill("name: x\nbudgte: 1\n")
        page.get_by_role("button", name="Check and estimate").click()
        page.get_by_role("alert").get_by_text("did you mean 'budget'?").first.wait_for()
        assert page.locator("#gutter .wrong").all_inner_texts()[-1].startswith("2")
        page.get_by_label("The study, as YAML").fill(json.dumps(study))
        page.get_by_role("button", name="Check and estimate").click()
        page.get_by_text("tiny is valid").wait_for()
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("heading", name="tiny", exact=True).wait_for()
        page.get_by_role("link", name="Cancel…").click()
        page.get_by_role("button", name="Cancel the study").click()
        page.locator("#state", has_text="cancelled").wait_for()
