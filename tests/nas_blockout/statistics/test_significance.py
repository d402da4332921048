"""Hand-worked cases, values from R, and simulations whose truth is known."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import t as student

from nas_blockout.statistics.significance import (
    budget_disagreement,
    compare,
    holm,
    inflation,
    overlap_of_folds,
    p_text,
    paired,
    search_means,
    smallest_effect,
    summary,
    variance_components,
    verdict,
)

# Student's sleep data (R: datasets::sleep), extra hours of sleep of ten patients with two drugs.
SLEEP_1 = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SLEEP_2 = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))

# Davies, "Statistical methods in research and production", 1947 (R: lme4::Dyestuff), six batches of five samples.
DYESTUFF = [
    [1545, 1440, 1440, 1520, 1580],
    [1540, 1555, 1490, 1560, 1495],
    [1595, 1550, 1605, 1510, 1560],
    [1445, 1440, 1595, 1465, 1545],
    [1595, 1630, 1515, 1635, 1625],
    [1520, 1455, 1450, 1480, 1445],
]
SIMULATIONS = 2000


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def nested(values: NDArray[np.float64] | list[list[int]]) -> dict[int, dict[int, float]]:
    return {search: dict(enumerate(map(float, row))) for search, row in enumerate(values)}


def coverage(samples: NDArray[np.float64], truth: float) -> float:
    intervals = [summary(seeds(*row)).ci95 for row in samples.tolist()]
    return float(np.mean([interval is not None and interval[0] <= truth <= interval[1] for interval in intervals]))


# -- summary


def test_summary_of_a_hand_worked_case() -> None:
    found = summary(seeds(1, 2, 3))
    assert (found.mean, found.std, found.n) == (2, 1, 3)
    assert found.ci95 == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)


def test_one_seed_has_a_mean_and_nothing_else() -> None:
    found = summary({3: 0.5})
    assert (found.mean, found.std, found.ci95, found.n) == (0.5, None, None, 1)


def test_seeds_that_all_agree_have_no_interval() -> None:
    found = summary(seeds(0.1 + 0.2, 0.3, 0.3))
    assert (found.std, found.ci95) == (0.0, None)


def test_intervals_stop_at_the_bounds() -> None:
    found = summary(seeds(0.99, 1.0, 0.98), bounds=(0, 1))
    assert found.ci95 is not None
    assert found.ci95[1] == 1.0 > found.ci95[0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [({}, "at least one"), (seeds(0.5, math.nan), "got nan"), (seeds(0.5, math.inf), "got inf")],
)
def test_scores_must_be_there_and_finite(scores: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary(scores)


def test_scores_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="check their unit"):
        summary(seeds(97.0, 98.0), bounds=(0, 1))


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
    st.floats(-3, 3),
    st.floats(0.1, 9),
    st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_a_summary_ignores_order_and_follows_shift_and_scale(values, shift, scale, random) -> None:  # type: ignore[no-untyped-def]
    before = summary(seeds(*values))
    random.shuffle(values)
    after = summary(seeds(*[shift + scale * value for value in values]))
    assert after.mean == pytest.approx(shift + scale * before.mean, abs=1e-9)
    assert after.std == pytest.approx(scale * (before.std or 0.0), abs=1e-9)


# -- several searches


def test_variance_components_of_the_dyestuff_data_are_those_of_lme4() -> None:
    found = variance_components(nested(DYESTUFF))
    assert (found.searches, found.retrainings) == (6, 30)
    assert found.mean == 1527.5
    assert found.between == pytest.approx(1764.05, abs=0.005)
    assert found.within == pytest.approx(2451.25)


def test_interval_of_the_dyestuff_mean_uses_its_standard_error_in_lme4() -> None:
    found = summary(search_means(nested(DYESTUFF)))
    assert found.std is not None
    assert found.std / math.sqrt(found.n) == pytest.approx(19.38, abs=0.005)


def test_variance_within_is_known_from_one_search_and_between_is_not() -> None:
    found = variance_components({0: seeds(1, 3)})
    assert (found.within, found.between) == (2.0, None)


def test_one_retraining_a_search_cannot_tell_the_two_apart() -> None:
    found = variance_components({0: seeds(1), 1: seeds(3)})
    assert (found.within, found.between) == (None, None)


def test_searches_that_agree_more_than_chance_have_variance_zero() -> None:
    assert variance_components({0: seeds(0, 10), 1: seeds(10, 0)}).between == 0.0


def test_unbalanced_variance_components_find_the_truth() -> None:
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(SIMULATIONS):
        effects = generator.normal(0, 2, 4)
        sizes = (2, 3, 4, 7)
        values = {s: seeds(*(effects[s] + generator.normal(0, 1, size))) for s, size in enumerate(sizes)}
        parts.append(variance_components(values))
    assert np.mean([part.within for part in parts if part.within is not None]) == pytest.approx(1, rel=0.05)
    assert np.mean([part.between for part in parts if part.between is not None]) == pytest.approx(4, rel=0.1)


# -- paired tests


def test_paired_t_of_the_sleep_data_is_that_of_r() -> None:
    found = paired(SLEEP_1, SLEEP_2)
    assert found.difference == pytest.approx(-1.58)
    assert found.p_value == pytest.approx(0.00283289, abs=1e-8)
    assert found.ci95 == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)


def test_sign_flips_of_the_sleep_data_are_counted_exactly() -> None:
    differences = [SLEEP_1[patient] - SLEEP_2[patient] for patient in SLEEP_1]
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in product((-1, 1), repeat=10)
    ]
    assert paired(SLEEP_1, SLEEP_2).p_permutation == sum(s >= 15.8 - 1e-9 for s in sums) / 1024 == 4 / 1024


def test_sign_flips_of_five_seeds_cannot_fall_below_a_sixteenth() -> None:
    found = paired(seeds(0.9, 0.91, 0.92, 0.93, 0.94), seeds(0.1, 0.12, 0.11, 0.13, 0.1))
    assert found.p_permutation == 0.0625
    assert found.p_value < 1e-4


def test_sign_flips_of_many_seeds_stay_near_the_t_test() -> None:
    generator = np.random.default_rng(1)
    a, b = seeds(*generator.normal(0.4, 1, 40)), seeds(*generator.normal(0, 1, 40))
    assert paired(a, b).p_permutation == pytest.approx(paired(a, b).p_value, abs=0.01)
    assert paired(a, b) == paired(a, b)


def test_only_shared_seeds_are_compared() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: 4.0, 7: 99.0}, {2: 1.0, 1: 1.0, 0: 1.0, 8: -99.0})
    assert found.n == 3
    assert found.difference == pytest.approx(4 / 3)


def test_arms_without_a_shared_seed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must share a seed, got \[0\] and \[1\]"):
        paired({0: 0.5}, {1: 0.5})


def test_one_shared_seed_proves_nothing() -> None:
    found = paired({0: 0.9}, {0: 0.1})
    assert (found.difference, found.std, found.ci95) == (0.8, None, None)
    assert (found.p_value, found.p_permutation) == (1.0, 1.0)


def test_identical_arms_do_not_differ() -> None:
    found = paired(SLEEP_1, SLEEP_1)
    assert (found.difference, found.p_value, found.p_permutation, found.ci95) == (0.0, 1.0, 1.0, None)


def test_constant_differences_fall_back_on_sign_flips() -> None:
    found = paired(seeds(0.3, 0.4, 0.5, 0.6, 0.7), seeds(0.2, 0.3, 0.4, 0.5, 0.6))
    assert (found.p_value, found.ci95, found.std) == (0.0625, None, 0.0)


def test_overwhelming_evidence_is_no_p_of_zero() -> None:
    many = range(400)
    found = paired({s: 1e6 + s % 2 for s in many}, dict.fromkeys(many, 0.0))
    assert 0 < found.p_value < 1e-300
    assert p_text(found.p_value) == "p < 0.0001"
    assert p_text(0.01234) == "p = 0.012"


@given(st.lists(st.tuples(st.integers(0, 360), st.integers(0, 360)), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_p_falls_below_the_level_exactly_when_the_interval_excludes_zero(counts: list[tuple[int, int]]) -> None:
    a, b = (seeds(*[pair[side] / 360 for pair in counts]) for side in (0, 1))
    found, back = paired(a, b), paired(b, a)
    assert (back.difference, back.p_value, back.p_permutation) == pytest.approx(
        (-found.difference, found.p_value, found.p_permutation)
    )
    if found.ci95 is not None:
        assert (found.p_value < 0.05) == (not found.ci95[0] <= 0 <= found.ci95[1])


# -- correction, verdicts


def test_holm_is_that_of_statsmodels() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx((0.04, 0.09, 0.09, 0.025, 0.2))
    assert holm([]) == ()
    assert holm([0.6, 0.7]) == (1.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    for p, p_holm in zip(p_values, corrected, strict=True):
        assert p <= p_holm <= min(1.0, p * len(p_values))


@pytest.mark.parametrize("p_value", [-0.1, 1.1, math.nan])
def test_p_values_must_be_probabilities(p_value: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([p_value])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        verdict(0.1, p_value)


def test_verdicts_follow_the_corrected_p_and_the_sign() -> None:
    assert verdict(0.1, 0.05) == "better"
    assert verdict(-0.1, 0.01) == "worse"
    assert verdict(0.1, 0.051) == "no difference shown"
    assert verdict(0.0, 0.01) == "no difference shown"


# -- power


def test_smallest_effect_is_that_of_statsmodels() -> None:
    assert smallest_effect(1.0, 5) == pytest.approx(1.6819971, abs=1e-5)
    assert smallest_effect(0.02, 10) == pytest.approx(0.02 * 0.9960019, abs=1e-6)


@pytest.mark.parametrize(
    ("std", "n", "power"), [(0.0, 5, 0.8), (math.nan, 5, 0.8), (1.0, 1, 0.8), (1.0, 5, 1.0), (1.0, 5, 0.1)]
)
def test_effects_of_impossible_designs_are_refused(std: float, n: int, power: float) -> None:
    with pytest.raises(ValueError, match="got"):
        smallest_effect(std, n, power=power)


# -- families


def test_a_clear_difference_gets_its_verdict_and_noise_does_not() -> None:
    arms = {
        "low": seeds(0.50, 0.51, 0.52, 0.50, 0.51),
        "high": seeds(0.70, 0.72, 0.71, 0.70, 0.72),
        "high-too": seeds(0.71, 0.70, 0.73, 0.69, 0.72),
    }
    found = compare(arms)
    verdicts = {(pair.a, pair.b): pair.verdict for pair in found.pairs}
    assert verdicts == {
        ("low", "high"): "worse",
        ("low", "high-too"): "worse",
        ("high", "high-too"): "no difference shown",
    }
    assert found.ranking is not None
    assert found.ranking[2] == "low"
    assert found.reason is None


def test_the_family_sets_the_correction_and_the_smallest_effect() -> None:
    arms = {"a": SLEEP_1, "b": SLEEP_2, "c": {s: value + 0.1 * (-1) ** s for s, value in SLEEP_1.items()}}
    one, all_three = compare(arms, pairs=[("a", "b")]).pairs[0], compare(arms).pairs[0]
    assert one.p_holm == one.test.p_value
    assert all_three.p_holm > one.p_holm
    assert one.smallest_effect is not None
    assert all_three.smallest_effect is not None
    assert all_three.smallest_effect == pytest.approx(smallest_effect(all_three.test.std or 0, 10, comparisons=3))
    assert one.smallest_effect < all_three.smallest_effect


def test_one_seed_an_arm_gives_no_ranking_and_no_difference() -> None:
    found = compare({"a": {0: 0.9}, "b": {0: 0.1}})
    assert (found.ranking, found.reason) == (None, "fewer than 2 seeds in a, b")
    assert [(pair.verdict, pair.smallest_effect) for pair in found.pairs] == [("no difference shown", None)]


def test_arms_are_ranked_on_the_seeds_that_all_have() -> None:
    found = compare({"lucky": {0: 0.5, 1: 0.5, 2: 0.99}, "steady": {0: 0.6, 1: 0.6}})
    assert found.ranking == ("steady", "lucky")


def test_arms_that_share_one_seed_are_not_ranked() -> None:
    found = compare({"a": {0: 0.5, 1: 0.5}, "b": {1: 0.6, 2: 0.6}})
    assert (found.ranking, found.reason) == (None, "the arms share 1 seed, and a ranking needs 2")


def test_one_arm_is_no_comparison() -> None:
    assert compare({"alone": seeds(0.5, 0.6)}).reason == "a ranking needs two arms"


@pytest.mark.parametrize("pairs", [[("a", "x")], [("a", "a")], [("a", "b"), ("b", "a")]])
def test_families_name_each_pair_of_known_arms_once(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="pair"):
        compare({"a": SLEEP_1, "b": SLEEP_2}, pairs=pairs)


def test_an_arm_with_a_nan_is_named() -> None:
    with pytest.raises(ValueError, match="arm 'bad' must be finite, got nan"):
        compare({"good": SLEEP_1, "bad": seeds(math.nan)})


# -- what was promised, on data whose truth is known


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("kind", ["normal", "small test set", "searches"])
def test_intervals_hold_the_truth_95_times_in_100(kind: str, n: int) -> None:
    generator = np.random.default_rng(n)
    shape = (SIMULATIONS, n)
    match kind:
        case "normal":
            samples = generator.normal(0.9, 0.003, shape)
        case "small test set":
            samples = generator.binomial(360, np.clip(generator.normal(0.9, 0.01, shape), 0, 1)) / 360
        case _:
            values = 0.9 + generator.normal(0, 0.003, (*shape, 1)) + generator.normal(0, 0.003, (*shape, 3))
            samples = np.array([list(search_means(nested(value)).values()) for value in values])
    assert 0.93 <= coverage(samples, 0.9) <= 0.97


def test_pooling_the_retrainings_of_searches_would_claim_too_much() -> None:
    generator = np.random.default_rng(2)
    values = 0.9 + generator.normal(0, 0.003, (SIMULATIONS, 5, 1)) + generator.normal(0, 0.003, (SIMULATIONS, 5, 3))
    assert coverage(values.reshape(SIMULATIONS, -1), 0.9) < 0.87


@pytest.mark.parametrize("spread", [[0.003] * 7, [0.015] + [0.003] * 6], ids=["alike", "one noisy"])
def test_seven_equal_arms_get_a_false_verdict_in_at_most_5_families_of_100(spread: list[float]) -> None:
    generator = np.random.default_rng(3)
    families, n = 1000, 5
    scores = (
        0.9
        + generator.normal(0, 0.002, (families, 1, n))
        + generator.normal(size=(families, 7, n)) * np.array(spread)[:, None]
    )
    wrong = sum(
        any(
            pair.verdict != "no difference shown"
            for pair in compare({str(arm): seeds(*row) for arm, row in enumerate(family)}).pairs
        )
        for family in scores.tolist()
    )
    assert wrong / families <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)


@pytest.mark.parametrize(("n", "comparisons"), [(5, 1), (5, 6), (10, 6)])
def test_the_smallest_effect_is_shown_four_times_in_five(n: int, comparisons: int) -> None:
    generator = np.random.default_rng(4)
    effect = smallest_effect(0.01, n, comparisons=comparisons)
    a = generator.normal(effect, 0.01, (SIMULATIONS, n)).tolist()
    shown = np.mean([paired(seeds(*row), seeds(*[0.0] * n)).p_value <= 0.05 / comparisons for row in a])
    assert shown == pytest.approx(0.8, abs=3.5 * math.sqrt(0.8 * 0.2 / SIMULATIONS))


def test_a_true_effect_in_a_family_is_shown_at_least_as_often_as_stated() -> None:
    generator = np.random.default_rng(5)
    families, n = 1000, 5
    effect = smallest_effect(0.01 * math.sqrt(2), n, comparisons=3)
    scores = generator.normal(0.5, 0.01, (families, 3, n)) + np.array([effect, 0, 0])[:, None]
    pairs = [compare({str(arm): seeds(*row) for arm, row in enumerate(family)}).pairs[0] for family in scores.tolist()]
    assert np.mean([pair.verdict == "better" for pair in pairs]) >= 0.8 - 3.5 * math.sqrt(0.8 * 0.2 / families)


# -- budgets


def test_equal_spending_agrees() -> None:
    assert budget_disagreement({"a": 100.0, "b": 98.0}, 0.02) is None
    assert budget_disagreement({"a": 0.0, "b": 0.0}, 0.02) is None


def test_the_arm_that_spent_less_is_named_with_its_share() -> None:
    reason = budget_disagreement({"a": 120_000, "b": 90_000}, 0.02)
    assert reason == "spending differs by more than 2.0% from a (120,000 sample passes): b 25.0% less (90,000)"


def test_spending_is_held_against_what_was_promised() -> None:
    reason = budget_disagreement({"a": 100.0, "b": 130.0}, 0.02, budget=100.0, unit="seconds")
    assert reason == "spending differs by more than 2.0% from the budget (100 seconds): b 30.0% more (130)"


@pytest.mark.parametrize(
    ("costs", "tolerance"), [({}, 0.1), ({"a": -1.0}, 0.1), ({"a": math.nan}, 0.1), ({"a": 1.0}, 2.0)]
)
def test_impossible_spending_is_refused(costs: dict[str, float], tolerance: float) -> None:
    with pytest.raises(ValueError, match="got"):
        budget_disagreement(costs, tolerance)


FOLDS = dict(enumerate([0.91, 0.90, 0.94, 0.92, 0.93]))
OTHERS = dict(enumerate([0.88, 0.89, 0.90, 0.91, 0.87]))


def test_folds_have_the_t_of_nadeau_and_bengio() -> None:
    # By hand: differences .03 .01 .04 .01 .06, mean .03, variance .00045; 1/5 + 1/4 in the place of 1/5.
    error = math.sqrt(0.00045 * (1 / 5 + 1 / 4))
    found = paired(FOLDS, OTHERS, overlap=overlap_of_folds(5))
    assert found.p_value == pytest.approx(2 * student.sf(0.03 / error, 4))
    assert found.ci95 == pytest.approx((0.03 - student.ppf(0.975, 4) * error, 0.03 + student.ppf(0.975, 4) * error))
    assert found.p_permutation is None
    assert found.std == paired(FOLDS, OTHERS).std
    pair = compare({"a": FOLDS, "b": OTHERS}, overlap=0.25).pairs[0]
    assert (pair.test, pair.verdict) == (found, "no difference shown")
    assert compare({"a": FOLDS, "b": OTHERS}).pairs[0].verdict == "better"
    assert pair.smallest_effect == pytest.approx(smallest_effect(found.std or 0, 5) * math.sqrt(1 + 5 / 4))
    assert summary(FOLDS, overlap=0.25).ci95 == pytest.approx(
        (0.92 - (half := student.ppf(0.975, 4) * math.sqrt(0.00025 * 0.45)), 0.92 + half)
    )


def test_independent_seeds_have_the_same_numbers_to_the_last_bit() -> None:
    assert overlap_of_folds(None) == 0.0
    assert paired(FOLDS, OTHERS, overlap=0.0) == paired(FOLDS, OTHERS)
    test = paired(FOLDS, OTHERS)
    assert test.std is not None
    assert test.p_value == 2 * float(stdtr(4, -abs(test.difference) / test.std * math.sqrt(5)))
    half = float(stdtrit(4, 0.975)) * test.std / math.sqrt(5)
    assert test.ci95 == (test.difference - half, test.difference + half)


def test_equal_differences_of_folds_show_nothing() -> None:
    shifted = {seed: value - 0.02 for seed, value in FOLDS.items()}
    found = paired(FOLDS, shifted, overlap=0.25)
    assert (found.p_value, found.p_permutation, found.ci95, found.std) == (1.0, None, None, 0.0)


@pytest.mark.parametrize("overlap", [-0.1, math.inf, math.nan])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match="overlap must be finite and 0 or more"):
        inflation(5, overlap)


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_the_corrected_test_keeps_its_level_where_folds_correlate(folds: int) -> None:
    """Equal arms whose differences correlate by 1 / K, as the correction assumes: by images that trainings share."""
    generator = np.random.default_rng(folds)
    share = (folds - 1) / (folds * (folds - 2))  # of the variance, of images, whose trainings correlate by (K-2)/(K-1)
    images = generator.normal(size=(SIMULATIONS, folds))
    trained_on = (images.sum(1, keepdims=True) - images) / math.sqrt(folds - 1)
    differences = math.sqrt(share) * trained_on + math.sqrt(1 - share) * generator.normal(size=images.shape)
    zeros = dict.fromkeys(range(folds), 0.0)
    rows = [dict(enumerate(row)) for row in differences.tolist()]
    corrected, naive = (
        np.mean([paired(row, zeros, overlap=overlap).p_value <= 0.05 for row in rows])
        for overlap in (overlap_of_folds(folds), 0.0)
    )
    assert corrected <= 0.06
    assert naive > 0.08
    assert naive > corrected
