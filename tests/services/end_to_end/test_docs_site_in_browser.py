"""The docs site as it is built, opened from disk in a real browser: search, widths, colors, the reference of Python."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from tests.services.program import PATIENCE

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(60)]

ROOT = Path(__file__).resolve().parents[3]
WIDE = (  # tables of many columns, output of commands, signatures
    "index.html",
    "results/branching.html",
    "results/quickstart.html",
    "reference/study-file.html",
    "reference/cli.html",
    "reference/python/structure.html",
    "concepts/comparison-with-other-tools.html",
    "tutorials/first-study.html",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a page without a place in the nav or a link that leads nowhere would fail."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


def opened(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    """A page from disk, what the browser complained about, and what it asked others for."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE * 1000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, asked


@pytest.mark.parametrize("width", [390, 1280])
def test_the_search_answers_from_disk_and_asks_nobody(width: int, site: Path, browser: Any) -> None:
    page, said, asked = opened(browser, site / "guides" / "laptop.html", width=width)
    if width < 1000:
        page.click("label.md-header__button[for=__search]")
    page.click("input.md-search__input")
    page.keyboard.type("membership probabilities")  # the search listens to keys, not to the value
    page.wait_for_selector(".md-search-result__item")
    found = page.locator(".md-search-result__link").first
    assert Path(unquote(urlparse(found.evaluate("link => link.href")).path)).is_file()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    page.close()


@pytest.mark.parametrize("name", WIDE)
def test_no_page_is_wider_than_a_phone(name: str, site: Path, browser: Any) -> None:
    page, said, _ = opened(browser, site / name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == []
    page.close()


def test_the_reader_chooses_between_light_and_dark(site: Path, browser: Any) -> None:
    page, _, _ = opened(browser, site / "index.html", scheme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    system = page.evaluate(color)
    page.click("label.md-header__button[title='Switch to light mode']")
    light = page.evaluate(color)
    assert light == "rgb(255, 255, 255)"
    assert system != light
    page.click("label.md-header__button[title='Switch to dark mode']")
    assert page.evaluate(color) == system
    page.close()


def defined(package: Path) -> set[str]:
    """Functions and classes that a package exports: constants and types have no docstring, and so no entry."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    exported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = set(ast.literal_eval(node.value))
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                found.add(node.name)
    return exported & found


@pytest.mark.parametrize("package", ["data", "experiment", "export", "methods", "plots", "testing", "training"])
def test_what_a_package_exports_is_in_the_reference(package: str, site: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (site / "reference" / "python").glob("*.html")]
    anchors = {name for page in pages for name in re.findall(r'id="nas_blockout\.([\w.]+)"', page)}
    names = {name.rpartition(".")[2] for name in anchors if name.partition(".")[0] == package}
    assert defined(ROOT / "nas_blockout" / package) - names == set()
