"""The report of a long search stays as small as one of a thousand trials, and says what it leaves out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nas_blockout import plots
from nas_blockout.data import load
from nas_blockout.plots import MOST_DOTS, MOST_LINES
from services.analysis.searches.importance import MOST_TRIALS
from services.files.study_dir import Folder, write_json
from services.finalize.finalize import write_comparison
from services.finalize.report_input import write_report
from services.report import ReportView
from services.report.page import render
from services.report.tables import cost_tables
from services.store import Store
from services.study_config.resolution import resolve_document
from tests.services.sql_counts import counted
from tests.services.tiny import TINY

MadeUp = Callable[..., ReportView]


@pytest.mark.slow(20)
def test_the_page_grows_no_more_and_says_what_is_left_out(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_tables, "MOST_TRIALS", 1000)  # it takes a tenth as long as with the ten thousand of today
    pages = {trials: render(made_up(arms=["random", "dense"], seeds=2, trials=trials)) for trials in (1_500, 6_000)}
    assert len(pages[6_000]) < 1.1 * len(pages[1_500])
    lost = sum(number % 6 in (3, 5) for arm in (6, 5) for number in range(arm, 6_000 + arm))
    for text in (
        f"Here are the first 1,000 of {lost:,} rows.",
        f"of more there are about {MOST_DOTS} at equal distances, the line has all",
        f"Of more trials the best {MOST_LINES} are drawn.",
        f"Of searches with more, {MOST_TRIALS:,} trials at equal distances are used.",
    ):
        assert text in pages[6_000]
        assert text not in render(made_up(arms=["random", "dense"], seeds=2, trials=6))


def test_epochs_are_read_of_retrained_models_alone(tmp_path: Path) -> None:
    study = resolve_document(TINY, source="test")
    splits, statements = load(study.data), dict[int, int]()
    for trials in (3, 12):
        folder = Folder(tmp_path / str(trials))
        folder.root.mkdir()
        write_json(folder.root / "environment.json", {})
        with Store.open(f"sqlite:///{tmp_path}/{trials}.db") as store:
            store.create_study(study.name, config=study.to_json(), config_hash=study.hash, arms=list(study.arms))
            for number in range(trials):
                added = store.add_trial(
                    study.name, arm="dense", phase="search", number=number, seed=number, planned=100,
                    experiment=study.arms["dense"].experiment.to_json(),
                )  # fmt: skip
                store.start_attempt(added.id)
                store.finish_trial(added.id, "complete", score=0.5, result={"validation_accuracy": 0.5})
            rows = store.trials(study.name)
            document = write_comparison(study, rows, folder, latency={})
            with counted() as counts:
                write_report(study, store, rows, document, splits, folder)
            statements[trials] = counts.statements
    assert statements[3] == statements[12]


def test_a_thinned_search_curve_has_all_its_steps() -> None:
    costs = np.arange(1.0, 5001.0)
    best = np.maximum.accumulate(np.random.default_rng(0).random(5000))
    axes = plots.figure_best_so_far([plots.Curve("random", "baseline", tuple(costs), tuple(best))]).axes[0]
    (steps,) = (line for line in axes.lines if line.get_linestyle() != "None")
    (dots,) = (line for line in axes.lines if line.get_linestyle() == "None")
    x, y = (np.asarray(values) for values in steps.get_data())
    np.testing.assert_array_equal(y[np.searchsorted(x, costs, side="right") - 1], best)
    assert len(x) < 100
    assert len(np.asarray(dots.get_xdata())) <= plots.MOST_DOTS
