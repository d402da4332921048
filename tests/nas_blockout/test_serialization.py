"""Settings from JSON: what is accepted, and that a refusal names key, value and rule."""

from dataclasses import dataclass
from typing import Literal

import pytest

from nas_blockout.serialization import count_of, from_json, near, to_json
from nas_blockout.settings_fields import PlainMapping

NO_OPTIONS = PlainMapping()


@dataclass(frozen=True, slots=True)
class Example:
    rate: float
    layers: tuple[int, ...] = (1, 2)
    mode: Literal["soft", "hard"] = "soft"
    limit: int | None = None
    on: bool = False
    name: str = "a"
    options: PlainMapping = NO_OPTIONS

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, got rate={self.rate}")


def test_round_trip_keeps_every_value() -> None:
    value = Example(0.5, (3,), "hard", 4, True, "b", PlainMapping({"widths": [1, {"deep": None}]}))
    assert from_json(Example, to_json(value), where="example") == value
    assert to_json(value)["layers"] == [3]
    assert to_json(value)["options"] == {"widths": [1, {"deep": None}]}


def test_whole_numbers_are_numbers_and_none_is_optional() -> None:
    assert from_json(Example, {"rate": 1, "limit": None}, where="x") == Example(1.0)
    assert isinstance(from_json(Example, {"rate": 1}, where="x").rate, float)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rat": 1.0}, r"x\.rat: no such setting; did you mean 'rate'\?"),
        ({}, r"x\.rate: this setting is required"),
        ({"rate": "high"}, r"x\.rate must be a number, got 'high'"),
        ({"rate": True}, r"x\.rate must be a number, got True"),
        ({"rate": float("nan")}, r"x\.rate must be a number"),
        ({"rate": 2.0}, r"x: rate must be at most 1, got rate=2\.0"),
        ({"rate": 0.1, "limit": 1.5}, r"x\.limit must be a whole number, got 1\.5"),
        ({"rate": 0.1, "limit": True}, r"x\.limit must be a whole number"),
        ({"rate": 0.1, "layers": 3}, r"x\.layers must be a list, got 3"),
        ({"rate": 0.1, "layers": [1, "b"]}, r"x\.layers\[1\] must be a whole number, got 'b'"),
        ({"rate": 0.1, "mode": "firm"}, r"x\.mode must be one of soft, hard, got 'firm'"),
        ({"rate": 0.1, "on": 1}, r"x\.on must be true or false, got 1"),
        ({"rate": 0.1, "name": 7}, r"x\.name must be a text, got 7"),
        ({"rate": 0.1, "options": [1]}, r"x\.options must be a mapping, got \[1\]"),
        ({"rate": 0.1, "options": {"a": [1, {2}]}}, r"x\.options\.a\[1\] must be a text, .*, got \{2\}"),
        (["rate"], r"x must be a mapping of settings"),
    ],
)
def test_refusals_name_key_value_and_rule(document: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Example, document, where="x")


def test_near_lists_all_names_where_none_is_near() -> None:
    assert near("zzz", ["dropout", "blockout"]) == "known are blockout, dropout"


def test_a_noun_follows_its_number() -> None:
    assert [count_of(number, "node") for number in (0, 1, 2, 1024)] == ["0 nodes", "1 node", "2 nodes", "1,024 nodes"]
    assert [count_of(number, "class", "classes") for number in (1, 3)] == ["1 class", "3 classes"]
