"""What goes into the store is finite, storable everywhere, and otherwise unchanged."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.store.checked_values import (
    NON_FINITE,
    non_negative,
    one_of,
    replace_non_finite,
    require_finite,
    storable,
    whole_number,
)

LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.floats()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
DOCUMENTS = st.dictionaries(st.text().filter(lambda key: key != NON_FINITE), JSON)


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_every_document_becomes_json_that_loses_only_what_json_lacks(document):
    clean = replace_non_finite(document)
    assert json.loads(json.dumps(clean, allow_nan=False)) == clean
    named = clean.pop(NON_FINITE, {})
    before, after = leaves(document), leaves(clean)
    changed = [old for old, new in zip(before, after, strict=True) if isinstance(old, float) and new is None]
    assert all(not math.isfinite(value) for value in changed)
    assert sorted({str(value) for value in changed}) == sorted(set(named.values()))
    kept = [(old, new) for old, new in zip(before, after, strict=True) if new is not None and not isinstance(old, str)]
    assert all(old == new and type(old) is type(new) for old, new in kept)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS)
def test_a_document_is_exact_or_refused(document):
    if NON_FINITE in replace_non_finite(document):
        with pytest.raises(ValueError, match="x must contain only finite numbers, got"):
            require_finite("x", document)
    else:
        assert require_finite("x", document) == replace_non_finite(document)


def test_tuples_become_lists_and_keys_texts():
    assert replace_non_finite({"a": (1, (2,)), "b": {3: 4}}) == {"a": [1, [2]], "b": {"3": 4}}


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec=None)))
def test_texts_are_storable_and_stay_readable(text):
    found = storable(text)
    assert "\0" not in found
    assert found.encode("utf-8").decode("utf-8") == found
    if "\0" not in text and not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        assert found == text


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1, 3.0])
def test_counts_within_the_range_are_taken(value):
    assert whole_number("x", value) == value
    assert type(whole_number("x", value)) is int


@pytest.mark.parametrize("value", [-1, 2**63, 0.5, True, float("nan"), float("inf")])
def test_counts_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"x must be a whole number in \[0, 2\*\*63 - 1\], got"):
        whole_number("x", value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_amounts_are_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="x must be a finite number of 0 or more, got"):
        non_negative("x", value)
    assert non_negative("x", 1) == 1.0


def test_a_word_is_one_of_those_known():
    assert one_of("x", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="x must be one of a, b, got 'c'"):
        one_of("x", "c", ("a", "b"))
