"""Classes that are asked for by name or label, and the folder of a model that was cut to them."""

import pytest

from services.finalize.class_subsets import folder_name, labels_of

GLYPHS = ("!", "A", "3", "0")


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [(("3", "A"), (2, 1)), (("0",), (3,)), (("1", "2"), (1, 2)), (("!", "1"), (0, 1))],
)
def test_a_name_comes_before_a_label(wanted: tuple[str, ...], labels: tuple[int, ...]) -> None:
    assert labels_of(wanted, GLYPHS) == labels


@pytest.mark.parametrize("text", ["4", "-1", "a", "1.0", "²", ""])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no class .*: give names, such as '!', or labels 0 to 3"):
        labels_of((text,), GLYPHS)


def test_of_classes_of_one_name_the_first_is_meant() -> None:
    assert labels_of(("x",), ("a", "x", "x")) == (1,)


def test_folders_of_other_classes_are_others_and_never_too_long() -> None:
    assert folder_name("learned", (3, 5, 8)) == "learned-classes-3-5-8"
    many = [folder_name("learned", tuple(order)) for order in (range(94), range(93), reversed(range(94)))]
    assert len({*many}) == 3
    assert max(map(len, many)) < 50
