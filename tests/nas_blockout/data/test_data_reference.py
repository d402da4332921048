"""The reference page of the data says what the code does."""

from pathlib import Path

import pytest

from nas_blockout.data import SOURCES, errors
from nas_blockout.data.corruptions import CORRUPTIONS
from nas_blockout.data.data_settings import COMBINED
from nas_blockout.data.sources import folder_layout

DOCS = Path(__file__).resolve().parents[3] / "docs"
REFERENCE = (DOCS / "reference" / "data.md").read_text(encoding="utf-8")
CONCEPT = (DOCS / "concepts" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_page_has_every_parameter_of_a_corruption(name):
    corruption = CORRUPTIONS[name]
    names = ", ".join(f"{key} (px)" if key in corruption.lengths else key for key in corruption.names)
    values = " | ".join(", ".join(f"{value:g}" for value in values) for values in corruption.parameters)
    purpose = "tuning" if corruption.tuning else "testing"
    assert f"| `{name}` | {corruption.group} | {purpose} | {names} | {values} |\n" in REFERENCE
    assert (f"| `{name}` | {corruption.differs} |\n" in REFERENCE) == bool(corruption.differs)


def test_the_page_has_no_corruption_that_is_not_there():
    section = REFERENCE.partition("## Corruptions")[2]
    assert {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")} == set(CORRUPTIONS)


def test_every_source_augmentation_error_and_suffix_is_named():
    assert all(f"`{name}`" in CONCEPT for name in SOURCES)
    assert all(f"| `{name}` |" in CONCEPT.replace("| or ", "| ") for part in COMBINED for name in part if name)
    assert all(f"`{kind.__name__}`" in REFERENCE for kind in errors.DataError.__subclasses__())
    assert all(f"`{suffix}`" in REFERENCE for suffix in (*folder_layout.SUFFIXES, *folder_layout.OTHER_FORMATS))


def test_the_page_has_every_word_for_a_split():
    for split, words in folder_layout.SPLIT_WORDS.items():
        assert f"| {', '.join(f'`{word}`' for word in words)} | {split} |\n" in REFERENCE
