"""Accuracy against latency: no front is drawn from times that are not told apart."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes

from services.analysis.comparison import ComparisonDocument
from services.report import ReportView, render
from services.report.accuracy import fronts
from services.report.figure import Picture

MadeUp = Callable[..., ReportView]
ARMS = ("dense", "dropout", "blockout")


def drawn(view: ReportView, latency: Mapping[str, Mapping[str, Any]]) -> tuple[Picture, Axes]:
    """The figure of accuracy against latency of a study with these latencies, and its axes."""
    document = copy.deepcopy(dict(view.comparison))
    for arm, measured in latency.items():
        document["arms"][arm]["latency_ms"] = {"batch_1": 0.0, "batch_256": 9.0, **measured}
        accuracies = document["arms"][arm]["test_accuracy"]
        accuracies["mean"] = {"dense": 0.9, "dropout": 0.92, "blockout": 0.94}[arm]
    picture = list(fronts(ComparisonDocument.model_validate(document)))[-1]
    assert picture.name == "front-latency"
    return picture, picture.figure.axes[0]


def dashed(axes: Axes) -> list[int]:
    return [len(line.get_xdata()) for line in axes.lines if line.is_dashed()]  # type: ignore[arg-type]


def hollow(axes: Axes) -> int:
    marks = [line for line in axes.lines if line.get_marker() in set("oDs^")]
    return sum(line.get_markerfacecolor() != line.get_markeredgecolor() for line in marks)


def test_a_front_joins_arms_whose_spreads_are_apart(made_up: MadeUp) -> None:
    times = {
        "dense": {"batch_1": 0.2, "batch_1_quartiles": [0.19, 0.21]},
        "dropout": {"batch_1": 0.3, "batch_1_quartiles": [0.29, 0.31]},
        "blockout": {"batch_1": 0.4, "batch_1_quartiles": [0.39, 0.41]},
    }
    picture, axes = drawn(made_up(arms=ARMS), times)
    assert "joins the arms on the Pareto front" in picture.caption
    assert "Not told apart" not in picture.caption
    assert dashed(axes) == [3]
    assert hollow(axes) == 0


def test_no_front_is_drawn_where_spreads_overlap_and_the_caption_names_the_arms(made_up: MadeUp) -> None:
    times = {
        "dense": {"batch_1": 0.43, "batch_1_quartiles": [0.3, 0.45]},
        "dropout": {"batch_1": 0.31, "batch_1_quartiles": [0.29, 0.44]},
        "blockout": {"batch_1": 0.8, "batch_1_quartiles": [0.7, 0.9]},
    }
    picture, axes = drawn(made_up(arms=ARMS), times)
    assert "(hollow marks): dropout, dense. No front is drawn" in picture.caption
    assert not any(dashed(axes))
    assert hollow(axes) == 2


def test_arms_that_are_beaten_may_overlap(made_up: MadeUp) -> None:
    times = {
        "dense": {"batch_1": 0.8, "batch_1_quartiles": [0.7, 0.9]},
        "dropout": {"batch_1": 0.85, "batch_1_quartiles": [0.7, 0.9]},
        "blockout": {"batch_1": 0.4, "batch_1_quartiles": [0.39, 0.41]},
    }
    picture, axes = drawn(made_up(arms=ARMS), times)
    assert "Not told apart in latency, since their bars overlap (hollow marks): dense, dropout." in picture.caption
    assert "joins the arms on the Pareto front" in picture.caption
    assert dashed(axes) == [1]


def test_a_study_whose_models_were_measured_one_by_one_gets_no_front(made_up: MadeUp) -> None:
    view = made_up(arms=ARMS)
    picture, axes = drawn(view, {arm: {"batch_1": 0.2 + 0.1 * at} for at, arm in enumerate(ARMS)})
    assert picture.caption.startswith("No front is drawn: the latency was measured one model after the other")
    assert not any(dashed(axes))
    document = copy.deepcopy(dict(view.comparison))
    document["arms"]["dense"]["latency_ms"] = {"batch_1": 0.25, "batch_256": 4.0}
    page = render(ReportView(document, view.study, view.environment, view.trials, view.epochs))
    assert "0.25 (measured by itself, no spread)" in page
