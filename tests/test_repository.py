"""What a hosted repository has besides code: a workflow that runs `.ci/run`, issue forms, owners, a changelog."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import nas_blockout

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
FILES = sorted([*GITHUB.rglob("*.yml"), *ROOT.glob("*.y*ml"), *ROOT.glob(".*.y*ml"), ROOT / "CITATION.cff"])
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # as keepachangelog.com has them


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(read(path), dict)


def test_the_workflow_runs_what_everybody_can_run() -> None:
    workflow = read(GITHUB / "workflows" / "ci.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if ".ci/run" in step.get("run", "")] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_the_workflow_may_read_and_no_more_and_ends() -> None:
    workflow = read(GITHUB / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 60
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert [step["with"]["persist-credentials"] for step in checkouts] == [False]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_for_something(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in asked} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in asked if field["type"] != "checkboxes")
    assert len({field["id"] for field in asked}) == len(asked)
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_there_is_a_form_for_each_kind_of_issue() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]


def test_code_owners_own_what_is_there() -> None:
    lines = (GITHUB / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*"
    assert [path for path, *_ in rules[1:] if not (ROOT / path.strip("/")).exists()] == []
    assert all(owners and all(owner.startswith("@") for owner in owners) for _, *owners in rules)


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert (citation["title"], citation["version"]) == (project["name"], nas_blockout.__version__)
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]


def breaches(text: str) -> list[str]:
    """What in a changelog is not as Keep a Changelog has it."""
    found, versions, section, change = [], [], None, None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            section, change = line, None
            if match := re.fullmatch(r"## \[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", line):
                versions.append(tuple(map(int, match.groups())))
            elif line != "## [Unreleased]" or versions:
                found.append(f"line {number}: neither Unreleased at the top nor a version with its date: {line}")
        elif line.startswith("### "):
            change = line.removeprefix("### ")
            if change not in CHANGES:
                found.append(f"line {number}: no kind of change: {change}")
        elif line.startswith("- ") and (section is None or change is None):
            found.append(f"line {number}: under no kind of change: {line}")
    if any(later <= earlier for later, earlier in pairwise(versions)):
        found.append("versions are not in descending order")
    return found


def test_the_changelog_has_its_form_and_this_version() -> None:
    text = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    assert breaches(text) == []
    assert "## [Unreleased]" in text.splitlines()
    latest = next(line for line in text.splitlines() if re.match(r"## \[\d", line))
    assert latest.startswith(f"## [{nas_blockout.__version__}] - ")


@pytest.mark.parametrize(
    ("text", "breach"),
    [
        ("## 0.1.0, unreleased\n", "line 1: neither Unreleased at the top nor a version with its date: "),
        ("## [0.1.0] - 2026-01-02\n## [Unreleased]\n", "line 2: neither Unreleased at the top nor a version"),
        ("## [Unreleased]\n### News\n", "line 2: no kind of change: News"),
        ("## [Unreleased]\n- it is faster\n", "line 2: under no kind of change: - it is faster"),
        ("- it is faster\n", "line 1: under no kind of change"),
        ("## [0.1.0] - 2026-01-02\n## [0.2.0] - 2026-01-03\n", "versions are not in descending order"),
    ],
)
def test_a_breach_of_the_changelog_is_found(text: str, breach: str) -> None:
    assert [found.startswith(breach) for found in breaches(text)] == [True]
