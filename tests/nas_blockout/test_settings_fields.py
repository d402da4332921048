"""Settings declared once: ranges in words, and one check that every dataclass of settings makes when it is built."""

import copy
import pickle
from dataclasses import MISSING, dataclass, fields
from datetime import date
from typing import Annotated, Literal

import pytest

from nas_blockout.backbones import BACKBONES
from nas_blockout.data import DataSettings
from nas_blockout.experiment import DERIVATIONS
from nas_blockout.methods import METHODS
from nas_blockout.settings_fields import SEED, Length, OneOf, Pattern, PlainMapping, Range, check, declared
from nas_blockout.training import TrainingSettings

KINDS = (
    DataSettings,
    TrainingSettings,
    *DERIVATIONS.values(),
    *(method.settings for method in METHODS.values()),
    *(backbone.settings for backbone in BACKBONES.values()),
)


# The settings without a default: no value would be right for anybody, so it must be given. Here a possible one.
NEEDED = {("ModuleSettings", "factory"): "package.module:name"}
Names = Annotated[tuple[str, ...], Length(1)]


@dataclass(frozen=True)
class Example:
    """An example.

    Args:
        rate: A rate.
        widths: Some widths,
            on two lines.
        word: A word.
        side: A side, or none.
        weight: A weight.
        some: All, the first of them, or names.
    """

    rate: Annotated[float, Range(ge=0, lt=1)] = 0.5
    widths: Annotated[tuple[Annotated[int, Range(ge=1)], ...], Length(1)] = (3,)
    word: Literal["a", "b"] = "a"
    side: Annotated[int, OneOf((1, 2))] | None = None
    weight: float = 1.0
    some: Literal["all"] | Annotated[str, Pattern("first [1-9]", "first N", "first 2")] | Names = "all"

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Range(ge=0, lt=1), "in [0, 1)"),
        (Range(gt=0.5, le=1), "in (0.5, 1]"),
        (Range(ge=1), "at least 1"),
        (Range(gt=0), "above 0"),
        (Range(lt=3), "below 3"),
        (Range(le=3), "at most 3"),
        (SEED, "in [0, 2**63-1]"),
    ],
)
def test_a_range_says_its_rule_in_words(rule: Range, words: str) -> None:
    assert str(rule) == words


def test_a_range_holds_its_closed_ends_and_not_its_open_ones() -> None:
    half_open = Range(ge=0, lt=1)
    assert 0 in half_open
    assert 1 not in half_open
    assert float("nan") not in Range()
    assert 2**63 - 1 in SEED
    assert 2**63 not in SEED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got rate=1\.0"),
        ({"rate": float("nan")}, r"rate must be a finite number, got rate=nan"),
        ({"widths": ()}, r"widths must be a list of 1 or more, got widths=\(\)"),
        ({"widths": (2, 0)}, r"each of widths must be at least 1, got widths=0"),
        ({"word": "c"}, r"word must be one of a, b, got 'c'"),
        ({"side": 3}, r"side must be one of 1, 2, got side=3"),
        ({"weight": float("inf")}, r"weight must be a finite number, got weight=inf"),
        ({"some": "first 0"}, r"some must be 'all', 'first N' or a list of names, got 'first 0'"),
        ({"some": ()}, r"some must be 'all', 'first N' or a list of names, got some=\(\)"),
        ({"some": 1}, r"some must be 'all', 'first N' or a list of names, got some=1"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_with_both(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("some", ["all", "first 3", ("a", "b"), ["a"]])
def test_a_setting_of_several_types_takes_each_of_them(some: object) -> None:
    assert Example(some=some).some == some  # type: ignore[arg-type]


def test_the_form_of_a_text_is_checked_where_it_is_the_only_type() -> None:
    @dataclass
    class Named:
        """A name.

        Args:
            name: A name.
        """

        name: Annotated[str, Pattern("[a-z]+", "lower-case letters", "abc")] = "a"

    check(Named("abc"))
    with pytest.raises(ValueError, match="name must be lower-case letters, got 'A1'"):
        check(Named("A1"))


def test_a_mapping_of_plain_values_is_a_value() -> None:
    given: dict[str, object] = {"b": [1, {"c": None}], "a": "text"}
    mapping = PlainMapping(given)
    assert mapping == PlainMapping({"a": "text", "b": (1, {"c": None})})
    assert hash(mapping) == hash(PlainMapping(mapping))
    assert (dict(mapping), len(mapping), mapping["b"]) == (given, 2, [1, {"c": None}])
    mapping.to_json()["b"].append(2)
    mapping["b"].append(2)
    given["a"] = "other"
    assert mapping.to_json() == {"a": "text", "b": [1, {"c": None}]}
    assert pickle.loads(pickle.dumps(mapping)) == copy.deepcopy(mapping) == mapping  # our own
    assert len({PlainMapping({"a": value}) for value in (1, 1.0, True, "1")}) == 4
    assert mapping != {"a": "text"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1, {"b": date(2026, 1, 1)}]}, r"a\[1\]\.b must be a text, a finite number, .* got datetime\.date"),
        ({"a": float("inf")}, r"a must be a text, a finite number, true, false, null, or a list or mapping of these"),
        ({"a": {1: 2}}, r"a must be a mapping whose keys are texts, got 1"),
        ({"a": float("nan"), "b": {1, 2}}, r"a must be .*\nb must be .* got \{1, 2\}"),
    ],
)
def test_what_is_no_plain_value_is_refused_where_it_stands(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlainMapping(values)


def test_declarations_have_sentences_from_the_docstring_and_defaults() -> None:
    settings = declared(Example)
    assert settings["widths"].sentence == "Some widths, on two lines."
    assert (settings["rate"].default, settings["side"].default) == (0.5, None)


def test_a_setting_without_a_sentence_is_refused() -> None:
    @dataclass
    class Silent:
        """Nothing is said."""

        rate: float = 0.0

    with pytest.raises(ValueError, match=r"describe every setting under Args: \['rate'\] are not"):
        declared(Silent)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_number_of_the_library_s_settings_has_a_range_and_a_default(kind: type) -> None:
    for name, setting in declared(kind).items():
        assert (
            "Range" in str(setting.hint)
            or "OneOf" in str(setting.hint)
            or not {"int", "float"}
            & set(str(setting.hint).replace("[", " ").replace("]", " ").replace("'", " ").split())
        ), name
    needed = {item.name: NEEDED[kind.__name__, item.name] for item in fields(kind) if item.default is MISSING}
    kind(**needed)
