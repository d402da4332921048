"""How searches went on, and how soon one had what another ended with."""

from services.analysis.searches.search_progress import progress_of, search_curves
from services.trial_record import Trial

FOUND = [
    Trial("learned", "search", 1, 0, "failed", 50),
    Trial("learned", "search", 0, 0, "complete", 100, score=0.5),
    Trial("learned", "search", 2, 0, "complete", 100, score=0.75),
    Trial("learned", "search", 3, 0, "running", 10, score=0.99),
    Trial("random", "search", 0, 0, "complete", 100, score=0.625),
    Trial("random", "search", 1, 0, "pruned", 25, score=0.9),
    Trial("random", "search", 2, 0, "complete", 100, score=0.6),
    Trial("single", "search", 0, 0, "complete", 100, score=0.7),
    Trial("lost", "search", 0, 0, "failed", 10),
    Trial("lost", "search", 1, 0, "failed", 10),
    Trial("random", "retrain", 0, 0, "complete", 100, score=0.95),
]


def test_curves_follow_the_budget_and_charge_failures() -> None:
    curve = search_curves(FOUND)["learned"]
    assert curve.cost.tolist() == [100, 150, 250]
    assert curve.best.tolist() == [0.5, 0.5, 0.75]


def test_a_search_tells_when_it_first_had_what_others_ended_with() -> None:
    progress = progress_of(FOUND)
    assert progress["learned"].best_validation_score == 0.75
    assert progress["learned"].sample_passes == 250
    assert progress["learned"].reaches == {"random": 250}
    # a pruned trial costs, and its accuracy is of a shorter training: it is no best
    assert (progress["random"].best_validation_score, progress["random"].sample_passes) == (0.625, 225)
    assert progress["random"].reaches == {"learned": None}


def test_arms_without_a_search_are_left_out_and_failed_searches_reach_nothing() -> None:
    progress = progress_of(FOUND)
    assert set(progress) == {"learned", "random", "lost"}
    assert progress["lost"].best_validation_score is None
    assert progress["lost"].reaches == {"learned": None, "random": None}
