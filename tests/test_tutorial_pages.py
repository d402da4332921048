"""How a tutorial is read by its test: what is run, what is compared, and that a wrong output is found."""

from pathlib import Path

import pytest

from tests.services.end_to_end.tutorial import (
    TUTORIALS,
    absent,
    absent_beginnings,
    environment_of,
    follow,
    form,
    missing,
    steps,
)

PAGE = """# A page

```yaml title="a.yaml"
key: 1
```

```sh
cat a.yaml
```

```text varies
key: 1
```

```sh if="no card"
true
```

```yaml
of: no file
```
"""


def test_files_commands_and_outputs_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    file, shown, silent = steps(tmp_path / "page.md")
    assert (file.file, file.text) == ("a.yaml", "key: 1\n")
    assert (shown.text, shown.shown, shown.varies, shown.condition) == ("cat a.yaml\n", "key: 1\n", True, "")
    assert (silent.shown, silent.varies, silent.condition) == ("", False, "no card")


def test_steps_are_done_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    written = [follow(step, tmp_path, environment_of(tmp_path)) for step in steps(tmp_path / "page.md")]
    assert written == ["", "key: 1\n", ""]


def test_paths_in_the_folder_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```sh\necho report: $PWD/runs/a\n```\n")
    [step] = steps(tmp_path / "page.md")
    assert follow(step, tmp_path, environment_of(tmp_path)) == "report: runs/a\n"


def test_a_command_that_fails_is_told_with_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```sh\necho so far\nfalse\necho never\n```\n")
    [step] = steps(tmp_path / "page.md")
    with pytest.raises(AssertionError, match=r"ended with 1:\nso far\n$"):
        follow(step, tmp_path, environment_of(tmp_path))


WRITTEN = (
    "│ dense    │ 94.5 (93 .. 95) │  1,018,752 │\nerror: a.yaml:6: no such key\n0.1 s, then 3 seeds of this and that\n"
)


@pytest.mark.parametrize(
    ("shown", "lost"),
    [
        ("│ dense │ 91.2 (88 .. 94) │ 17 │\n", []),
        ("error: a.yaml:6: no such key\n...\n0.4 s, then 3 ...\n", []),
        ("┏━━━━┳━━┓\n└────┴──┘\n\n", []),
        ("error: a.yaml:6: no such kez\n", ["error: a.yaml:6: no such kez"]),
        ("│ thin │ 91.2 (88 .. 94) │ 17 │\n", ["│ thin │ 91.2 (88 .. 94) │ 17 │"]),
        ("then 3 ...\n", ["then 3 ..."]),
    ],
)
def test_a_shown_line_must_have_been_written_but_for_its_numbers(shown: str, lost: list[str]) -> None:
    assert absent(shown, WRITTEN) == lost


def test_numbers_and_columns_make_no_difference_but_words_do() -> None:
    assert form("│ dense │ -1.36 │") == form("┃ dense  ┃ +0.2 ┃")
    assert form("3 seeds") != form("3 arms")


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_has_commands_and_shows_what_they_write(page: Path) -> None:
    commands = [step for step in steps(page) if step.file is None]
    assert commands
    if page.stem != "index":
        assert any(step.shown for step in commands)
    assert "OUTPUT" not in page.read_text(encoding="utf-8")


ENDED = """│ dense │ 94.5 (93 .. 95) │
Yes, learned structure helps: blockout is better than thin.
  -  by mean test accuracy: blockout 94%, thin 92%
Ship blockout
  model          runs/first/models/blockout (seed 2)
  cost           85,632 MACs an image
blockout - thin +2.00 (+1.00 to +3.00) points: better
"""


@pytest.mark.parametrize(
    ("shown", "lost"),
    [
        ("│ dense │ 91 (88 .. 94) │\n", []),
        ("│ thin │ 91 (88 .. 94) │\n", ["│ thin │ 91 (88 .. 94) │"]),
        ("Not shown that learned structure helps.\n  -  by mean test accuracy: thin 92%\n", []),
        ("Ship thin\n  model          runs/first/models/thin (seed 0)\n  cost           1 MACs an image\n", []),
        ("blockout - thin -1.00 (-2.00 to +3.00) points: no difference shown\n", []),
        ("blockout - dense -1.00 points\n", ["blockout - dense -1.00 points"]),
        ("  latency 3 ms\n", ["  latency 3 ms"]),
    ],
)
def test_of_an_output_that_varies_the_beginnings_are_compared(shown: str, lost: list[str]) -> None:
    assert absent_beginnings(shown, ENDED) == lost


def test_a_verdict_that_is_shown_must_have_been_written() -> None:
    assert absent_beginnings("No, it does not help.\nShip a\n", "nothing\n") == ["No, it does not help.", "Ship a"]


def test_only_what_says_so_varies(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "```sh\ntrue\n```\n```text\nShip a\n```\n```sh\ntrue\n```\n```text varies\nShip a\n```\n"
    )
    strict, varying = steps(tmp_path / "page.md")
    assert [missing(step, "Ship b\n") for step in (strict, varying)] == [["Ship a"], []]
