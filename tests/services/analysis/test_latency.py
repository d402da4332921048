"""What latencies show, on spreads made by hand."""

import pytest
from pydantic import ValidationError

from services.analysis.latency import Latency, not_told_apart, overlap, spread_text, undominated


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [((1, 2), (3, 4), False), ((1, 3), (2, 4), True), ((1, 4), (2, 3), True), ((1, 2), (2, 3), True)],
)
def test_spreads_overlap_if_they_have_a_point_in_common(
    one: tuple[float, float], other: tuple[float, float], expected: bool
) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


def test_groups_hold_what_overlaps_directly_or_through_others() -> None:
    spreads = {"slow": (9, 9.5), "c": (2.4, 4), "a": (1, 2), "b": (1.5, 2.5), "alone": (6, 7), "e": (9.1, 9.2)}
    assert not_told_apart(spreads) == [["a", "b", "c"], ["slow", "e"]]
    assert not_told_apart({"a": (1, 9), "b": (2, 3), "c": (5, 6)}) == [["a", "b", "c"]]
    assert not_told_apart({"a": (1, 2), "b": (3, 4)}) == []


def test_an_arm_is_beaten_only_by_one_that_is_shown_to_be_faster() -> None:
    points = {
        "fast": (0.90, (1.0, 1.1)),
        "slow-and-worse": (0.89, (2.0, 2.1)),
        "unclear": (0.88, (1.05, 1.2)),  # less accurate than fast, but not shown to be slower
        "best": (0.95, (3.0, 3.2)),
    }
    assert undominated(points) == ["fast", "unclear", "best"]


def test_exact_costs_have_the_usual_pareto_front() -> None:
    points = {"a": (0.9, (5, 5)), "b": (0.8, (5, 5)), "c": (0.9, (6, 6)), "d": (0.95, (6, 6)), "e": (0.9, (5, 5))}
    assert undominated(points) == ["a", "e", "d"]


def test_a_median_outside_its_quartiles_is_refused_and_quartiles_may_be_missing() -> None:
    old = Latency.model_validate({"batch_1": 0.3, "batch_256": 4.0})
    assert old.batch_1_quartiles is None
    assert "no spread" in old.text
    assert Latency(batch_1=0.3, batch_256=4.0, batch_1_quartiles=(0.2, 0.4)).text.startswith(
        "one image 0.3 (0.2 to 0.4)"
    )
    with pytest.raises(ValidationError, match="between its quartiles"):
        Latency(batch_1=0.5, batch_256=4.0, batch_1_quartiles=(0.2, 0.4))


def test_seconds_are_written_as_thousands_of_milliseconds() -> None:
    assert spread_text(2672.4, (2031.0, 4449.0)) == "2,672 (2,031 to 4,449)"
    assert spread_text(0.0533, (0.053, 999.6)) == "0.0533 (0.053 to 1,000)"
