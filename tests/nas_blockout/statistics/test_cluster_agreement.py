"""Agreement equals scikit-learn's, is 1 for the same groups, and is held against shuffled groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from nas_blockout.statistics.cluster_agreement import agreement

KNOWN = np.repeat(np.arange(4), 6)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_values_are_those_of_scikit_learn(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 30))
    labels = st.lists(st.integers(0, 5), min_size=classes, max_size=classes)
    reference, groupings = data.draw(labels), data.draw(st.lists(labels, min_size=1, max_size=3))
    found = agreement(groupings, reference, shuffles=5)
    expected = [adjusted_mutual_info_score(grouping, reference) for grouping in groupings]
    assert found.values == pytest.approx(expected, abs=1e-9)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-9)


def test_the_same_groups_under_other_names_agree_wholly() -> None:
    found = agreement([(KNOWN + 2) % 4, KNOWN], KNOWN)
    assert found.values == pytest.approx((1.0, 1.0))
    assert found.p_value == pytest.approx(1 / 1000)
    assert found.shuffled[0] < 0 < found.shuffled[1] < 0.5


def test_unrelated_groups_agree_as_shuffled_ones_do() -> None:
    draws = np.random.default_rng(0)
    found = [agreement([draws.permutation(KNOWN)], KNOWN, shuffles=199, seed=n) for n in range(200)]
    assert abs(np.mean([each.mean for each in found])) < 0.03
    share = np.mean([each.p_value <= 0.05 for each in found])
    assert 0.01 <= share <= 0.1
    inside = np.mean([each.shuffled[0] <= each.mean <= each.shuffled[1] for each in found])
    assert 0.9 <= inside <= 0.99


def test_seeds_that_found_the_same_unrelated_groups_are_no_evidence() -> None:
    draws = np.random.default_rng(1)
    unrelated = [draws.permutation(KNOWN) for _ in range(100)]
    values = [agreement([grouping] * 5, KNOWN, shuffles=99, seed=n).p_value for n, grouping in enumerate(unrelated)]
    assert 0.0 <= np.mean([p <= 0.05 for p in values]) <= 0.13


def test_one_group_for_all_classes_says_nothing() -> None:
    found = agreement([np.zeros(len(KNOWN))], KNOWN)
    assert (found.values, found.p_value) == (pytest.approx((0.0,)), 1.0)


def test_the_same_seed_gives_the_same_shuffles() -> None:
    grouping = np.random.default_rng(3).permutation(KNOWN)
    assert agreement([grouping], KNOWN, seed=4) == agreement([grouping], KNOWN, seed=4)
    assert agreement([grouping], KNOWN, seed=4).p_value != agreement([grouping], KNOWN, seed=5).p_value


@pytest.mark.parametrize("groupings", [[], [[0, 1]]])
def test_groupings_of_other_classes_are_refused(groupings: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="24 classes of the reference"):
        agreement(groupings, KNOWN)
