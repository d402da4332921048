"""The template of a group: what it takes out of a path, and that no path keeps it busy."""

from pathlib import Path

import pytest

from nas_blockout.data.listings.group_template import GroupTemplate


@pytest.mark.parametrize(
    ("template", "path", "group"),
    [
        ("<patient#>_*", "cat/patient12_scan3.png", "patient12"),
        ("<patient#>_*", "cat/patient_scan3.png", None),
        ("<*>_*", "a_b_c.png", "a"),  # as few characters as the rest allows
        ("*_<#>.png", "a_b_12.png", "12"),  # for which the first star has to take two parts
        ("<*>/*", "cat/scene 7/001.png", "scene 7"),
        ("<*/*>/*", "root/cat/scene/001.png", "cat/scene"),
        ("<?>#.png", "x31.png", "x"),
        ("<#>*", "123abc.png", "123"),  # all digits that there are
        ("<*>_*", "_a.png", None),  # an empty group is none
        ("<p#>", "p1.png", None),  # to the end of the name
        ("<*>-*", "nothing.png", None),
        ("[<*>].png", "[a.b].png", "a.b"),  # nothing else is special
        ("<*>/*", "alone.png", None),
    ],
)
def test_the_group_is_what_the_brackets_match(template: str, path: str, group: str | None) -> None:
    assert GroupTemplate(template).group_of(Path(path)) == group


def test_a_path_that_almost_matches_is_looked_at_once_a_position(monkeypatch: pytest.MonkeyPatch) -> None:
    # A regular expression of the same form tries every way to divide the path between the stars.
    template = "*a" * 30 + "<b>"
    assert GroupTemplate(template).group_of(Path("a" * 250)) is None
