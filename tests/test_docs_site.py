"""The docs site: every page is in the nav by the rules of mkdocs.yml, and what is drawn from README.md is fresh."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_docs import DOCS, ROOT, script

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
REFERENCE = DOCS / "reference" / "python"
# Pages that need not be there yet may be meant by a pattern; a page by its name must be there.
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def nav() -> list[Any]:
    found = yaml.safe_load(SETTINGS)["nav"]
    assert isinstance(found, list)
    return found


def test_every_page_is_in_the_nav_once() -> None:
    navigation = script("navigation")
    listed = list(navigation.entries(navigation.expanded(nav(), PAGES)))
    assert sorted(listed) == PAGES


def test_a_pattern_takes_what_no_entry_names_in_its_own_folder() -> None:
    navigation = script("navigation")
    given = [{"One": ["a.md", "b/*.md"]}, {"Two": [{"Three": "c/x*.md"}, {"Four": "b/z.md"}]}, "c/none*.md"]
    pages = ["a.md", "b/y.md", "b/x.md", "b/z.md", "b/d/w.md", "c/xx.md", "c/y.md"]
    assert navigation.expanded(given, pages) == [
        {"One": ["a.md", "b/x.md", "b/y.md"]},
        {"Two": [{"Three": ["c/xx.md"]}, {"Four": "b/z.md"}]},
    ]


def test_a_page_of_two_patterns_stands_under_the_first() -> None:
    navigation = script("navigation")
    given = [{"Models": "g/model*.md"}, {"All": "g/*.md"}]
    assert navigation.expanded(given, ["g/models.md", "g/other.md"]) == [
        {"Models": ["g/models.md"]},
        {"All": ["g/other.md"]},
    ]


def test_nothing_of_the_site_is_loaded_from_elsewhere() -> None:
    found = yaml.safe_load(re.sub(r"!!python/\S+", "", SETTINGS))
    assert found["theme"]["font"] is False
    scripts = found["extra"]["polyfills"]
    assert [name for name in scripts if not (DOCS / name).is_file()] == []
    assert any("iframe-worker" in name for name in scripts), "else the plugin `offline` adds one from the network"


def directives() -> set[str]:
    """What the pages of the reference of Python document."""
    return {
        name
        for page in REFERENCE.glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


# Rooms that only others of the library use; what they have in common is that nothing outside need import them.
INTERNAL = {"nas_blockout.randomness"}


def test_every_room_of_the_library_has_its_place_in_the_reference() -> None:
    rooms = {f"nas_blockout.{path.parent.name}" for path in (ROOT / "nas_blockout").glob("*/__init__.py")}
    named = {".".join(name.split(".")[:2]) for name in directives()}
    assert rooms - INTERNAL - named == set()


@pytest.mark.parametrize("name", sorted(directives()))
def test_what_the_reference_names_exists(name: str) -> None:
    *parents, last = name.split(".")
    place = ROOT.joinpath(*parents)
    if (place / last / "__init__.py").is_file() or (place / f"{last}.py").is_file():
        return
    module = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    tree = ast.parse(module.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert last in defined


def test_functions_that_a_module_of_their_name_hides_are_named_by_their_place() -> None:
    hidden = set()
    for path in (ROOT / "nas_blockout").rglob("__init__.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        modules = {each.stem for each in path.parent.glob("*.py")}
        if package in directives():
            hidden |= {f"{package}.{name}.{name}" for name in exported(path) & modules}
    assert hidden - directives() == set()


def exported(path: Path) -> set[str]:
    """Names in the ``__all__`` of a package."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_the_run_in_the_readme_is_that_of_the_results_and_of_the_picture() -> None:
    picture = script("terminal_picture")
    run = re.search(r"<!-- quickstart:begin -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert run is not None
    assert run[1] in (DOCS / "results" / "quickstart.md").read_text(encoding="utf-8")
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.drawn(picture.shown()), "run docs/terminal_picture.py"


def test_a_line_of_the_picture_is_as_wide_as_its_characters() -> None:
    drawn = script("terminal_picture").drawn(["$ nas", "  a < b", "", "Ship it"])
    assert re.findall(r'textLength="([\d.]+)"', drawn) == ["36.0", "36.0", "50.4"]
    assert "a &lt; b" in drawn
    assert drawn.count("<text") == 3


def test_the_readme_is_short_and_its_badges_are_true() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    told = " ".join((DOCS / "images" / f"badge-{name}.svg").read_text() for name in ("python", "license", "typed"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert re.findall(r"3\.\d+", re.search(r"python: ([^\"]+)", told)[1]) == versions
    assert re.search(r'^license = "(.+)"', project, re.MULTILINE)[1] in told
    assert re.search(r"^strict = true", project, re.MULTILINE)
    assert "mypy strict" in told
