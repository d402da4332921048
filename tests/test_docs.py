"""The docs name everything that exists, their generated pages are fresh, and their links lead somewhere."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def script(name: str) -> ModuleType:
    """A script of the docs, imported."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def generator() -> ModuleType:
    return script("generate_reference")


def headings(page: str) -> set[str]:
    """Titles of the sections of a reference page, without back-ticks."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    return {match.strip("`") for match in re.findall(r"^## (.+)$", text, re.MULTILINE)}


def test_generated_reference_is_fresh() -> None:
    assert generator().stale() == [], "run `make docs`"


def test_a_stale_or_missing_page_is_found(tmp_path: Path) -> None:
    for name, text in generator().fresh().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert generator().stale(tmp_path) == []
    (tmp_path / "cli.md").unlink()
    with (tmp_path / "spaces.md").open("a", encoding="utf-8") as page:
        page.write("edited by hand\n")
    assert sorted(generator().stale(tmp_path)) == ["cli.md", "spaces.md"]


@pytest.mark.parametrize(
    ("hint", "kind", "limits"),
    [
        (int | None, "integer or null", ""),
        (list[float], "list of number", ""),
        (Literal["sgd", "adamw"], "sgd or adamw", ""),
        (Annotated[str, "a note"], "text", ""),
        (dict[str, int], "mapping", ""),
        (Annotated[float, Field(ge=0, lt=1)] | None, "number or null", "in [0, 1)"),
        (
            Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)],
            "list of integer",
            "1 or more, each above 0",
        ),
    ],
)
def test_types_and_ranges_are_named_for_a_writer_of_yaml(hint: Any, kind: str, limits: str) -> None:
    schema = TypeAdapter(hint).json_schema()
    assert (generator()._type(schema), generator()._range(schema)) == (kind, limits)


def test_bars_and_line_breaks_do_not_break_a_table() -> None:
    assert generator().table(("a", "b"), [("x | y", "z\n z")]) == "| a | b |\n| --- | --- |\n| x \\| y | z z |\n"


def test_formulas_become_mathml() -> None:
    page = '<p>5 $ <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\n\\sqrt{k}\n\\]</div>'
    drawn = script("render_math").on_page_content(page, page=None)
    assert "arithmatex" not in drawn
    assert re.findall(r'display="(\w+)"', drawn) == ["inline", "block"]
    assert "<mi>a</mi><mo>&#x0003C;</mo><mi>b</mi>" in drawn
    assert "<msqrt>" in drawn


def test_every_method_has_a_card() -> None:
    from nas_blockout.methods import METHODS

    assert {path.stem for path in (DOCS / "methods").glob("*.md")} - {"index", "README"} == set(METHODS)


def test_every_card_of_a_method_names_all_its_settings() -> None:
    from nas_blockout.methods import METHODS

    cards = {name: (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8") for name in METHODS}
    missing = {
        name: absent
        for name, method in METHODS.items()
        if (absent := [item.name for item in fields(method.settings) if f"`{item.name}`" not in cards[name]])
    }
    assert missing == {}


def in_a_card(value: object) -> set[str]:
    """How a card may write a default."""
    if value is None:
        return {"-", "none"}
    if isinstance(value, bool):
        return {str(value).lower()}
    return {
        ", ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    }


def test_every_card_of_a_method_states_the_defaults() -> None:
    from nas_blockout.methods import METHODS

    wrong = {}
    for name, method in METHODS.items():
        section = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8").partition("## Settings")[2]
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
        stated = dict(reversed(rows))  # the first row counts: below may be the settings of a derivation
        for item in fields(method.settings):
            if stated.get(item.name) not in in_a_card(getattr(method.settings(), item.name)):
                wrong[f"{name}.{item.name}"] = stated.get(item.name)
    assert wrong == {}


def test_every_space_study_command_and_route_has_its_section() -> None:
    from search_spaces import SPACES
    from services.api import description as api_description
    from services.study_config.yaml_reader import bundled

    assert headings("spaces.md") == set(SPACES)
    assert headings("studies.md") == set(bundled())
    routes = {f"{method.upper()} {path}" for path, each in api_description()["paths"].items() for method in each}
    assert routes <= headings("api.md")
    assert headings("cli.md") == {"nas-blockout " + " ".join(words) for words in generator().commands()}


def environment_variables() -> set[str]:
    """Names that the services read, as they stand in the source."""
    return {
        node.value
        for path in (ROOT / "services").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"NAS_BLOCKOUT_[A-Z_]*[A-Z]", node.value)
    }


def test_every_environment_variable_is_documented() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert environment_variables() - set(re.findall(r"NAS_BLOCKOUT_[A-Z_]*[A-Z]", page)) == set()


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs both make them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def without_code(text: str) -> str:
    return re.sub(r"^ *(```|~~~).*?^ *\1", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[str]:
    """Targets of the links and images of a page that lead to files of the repository."""
    text = re.sub(r"`[^`\n]*`", "", without_code(page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)", text):
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield target


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and other.suffix == ".md" and anchor not in anchors(other)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title: with `code`\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-title-with-code) [c](https://example.org) [d](#here) `[e](x.md)`\n"
        "# Here\n```\n[f](y.md)\n```\n[g](gone.md) ![h](gone.png) [i](other.md#gone) [j](#gone)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["gone.md", "gone.png", "other.md#gone", "#gone"]


PACKAGES = ("nas_blockout", "search_spaces", "services")
NAMED = re.compile(r"`((?:nas_blockout|search_spaces|services|tests|benchmarks)/[\w./-]+)(?::([\w.]+))?`")


def definitions_in(path: Path) -> set[str]:
    """Names of the functions, classes and methods of a module, methods as ``Class.method``."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)]
    methods = {
        f"{node.name}.{member.name}"
        for node in top
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, kinds)
    }
    return {node.name for node in top} | methods


def missing_paths(page: Path) -> list[str]:
    """Paths that a page names in back-ticks, alone or with a name in the file after a colon, and that do not exist."""
    missing = []
    for path, name in NAMED.findall(page.read_text(encoding="utf-8")):
        if not (ROOT / path).exists() or (name and name not in definitions_in(ROOT / path)):
            missing.append(f"{path}:{name}" if name else path)
    return missing


# The changelog speaks of its time; everything else of what is there now.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "changelog.md"], ids=name_of)
def test_files_and_functions_that_a_page_names_exist(page: Path) -> None:
    assert missing_paths(page) == []


def test_missing_files_and_functions_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`services/cli/main.py` `services/gone.py` `nas_blockout/` `tests/<name>.py` services/no.py\n"
        "`services/cli/main.py:run` `services/cli/main.py:walk` `nas_blockout/training/training_loop.py:fit.x`\n",
        encoding="utf-8",
    )
    assert missing_paths(page) == [
        "services/gone.py",
        "services/cli/main.py:walk",
        "nas_blockout/training/training_loop.py:fit.x",
    ]


def test_every_room_has_its_row_in_where_is_what() -> None:
    page = (DOCS / "guides" / "where-is-what.md").read_text(encoding="utf-8")
    rooms = {
        name_of(path.parent)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(re.findall(r"^\| \[`([\w/]+)`\]\(\.\./\.\./\1\) \|", page, re.MULTILINE)) == sorted(rooms)


def test_the_site_keeps_the_text_of_links_to_source_files_alone() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/page.md"))
    text = "[a](../../services/cli) [`b:c`](../../pyproject.toml) ![d](../images/d.png) [e](../index.md#f) [g](h.md)"
    kept = script("source_links").on_page_markdown(text, page=page)
    assert kept == "a `b:c` ![d](../images/d.png) [e](../index.md#f) [g](h.md)"


def public_modules() -> list[Path]:
    return [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.stem.startswith("_") or path.stem == "__init__"
        if "versions" not in path.parts
    ]


@pytest.mark.parametrize("path", public_modules(), ids=name_of)
def test_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").endswith((".", ":", "`")), "a module starts with a docstring of sentences"


@pytest.mark.parametrize("path", public_modules(), ids=name_of)
def test_public_classes_and_functions_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []
