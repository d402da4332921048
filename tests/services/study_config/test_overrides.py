"""`--set key=value`: dotted keys, YAML values, and errors that name the key."""

from typing import Any

import pytest

from services.study_config.errors import StudyError
from services.study_config.overrides import assigned

DOCUMENT = {"name": "x", "budget": {"sample_passes": 100, "tolerance": 0.02}, "arms": {"a": {}}}


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("budget.sample_passes=60000", ("budget", "sample_passes"), 60000),
        ("retrain.seeds=[0, 1, 2]", ("retrain", "seeds"), [0, 1, 2]),
        ("arms.b={method: {name: dropout}}", ("arms", "b"), {"method": {"name": "dropout"}}),
        ("question=why = how?", ("question",), "why = how?"),
        ("export=", ("export",), None),
        ("seed=7", ("seed",), 7),
    ],
)
def test_keys_are_set_and_the_rest_stays(assignment: str, key: tuple[str, ...], value: Any) -> None:
    found: Any = assigned(DOCUMENT, [assignment])
    for part in key:
        found = found[part]
    assert found == value
    assert DOCUMENT["budget"] == {"sample_passes": 100, "tolerance": 0.02}
    assert assigned(DOCUMENT, [assignment])["name"] == "x"


def test_the_last_one_of_a_key_holds() -> None:
    assert assigned(DOCUMENT, ["seed=1", "seed=2"])["seed"] == 2
    assert assigned(DOCUMENT, []) == DOCUMENT


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("budget.sample_passes", "--set takes key=value"),
        ("=5", "--set takes key=value"),
        ("budget..x=5", "--set takes key=value"),
        ("retrain.seeds=[0, 1", "--set retrain.seeds: the value is not valid YAML"),
        ("data=!!python/object:os.system {}", "--set data: the value is not valid YAML"),
        ("name.first=5", "--set name.first: name holds 'x', which has no keys; set name itself"),
    ],
)
def test_what_cannot_be_set_is_one_error(assignment: str, said: str) -> None:
    with pytest.raises(StudyError) as refused:
        assigned(DOCUMENT, [assignment])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
