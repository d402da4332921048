"""What a report, the sentence and the list of trials say of corrupted test images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from services.analysis.comparison import ComparisonDocument
from services.analysis.robustness import RobustnessResult
from services.analysis.verdict import corruption_errors, sentence
from services.cli.show import corruption_errors_of
from services.report import ReportView, render
from services.report.tables.accuracy_tables import corruption_detail, corruption_tables
from services.trial_record import Trial

MadeUp = Callable[..., ReportView]
ARMS = ("dense", "dropout")


def robustness(arms: Sequence[str] = ARMS, severities: Sequence[int] = (1, 3, 5)) -> RobustnessResult:
    results = {
        arm: {
            seed: {
                "images": 200, "severities": list(severities), "clean_error": 0.1 + 0.05 * number,
                "errors": {
                    "fog": [0.2 + 0.1 * number + seed / 100] * len(severities),
                    "shot_noise": [0.4 - 0.1 * number - seed / 50] * len(severities),
                },
                "making_seconds": 0.0, "seconds": 1.5,
            }
            for seed in range(5)
        }
        for number, arm in enumerate(arms)
    }  # fmt: skip
    found = RobustnessResult.of(results, pairs=[ARMS] if len(arms) == 2 else [])
    assert found is not None
    return found


@pytest.fixture
def view(made_up: MadeUp) -> ReportView:
    plain = made_up(arms=ARMS, trials=2, length=6)
    return replace(plain, comparison={**plain.comparison, "robustness": robustness().model_dump(mode="json")})


def test_the_report_has_a_section_with_figure_arms_kinds_and_pairs(view: ReportView) -> None:
    page = render(view)
    assert '<h2 id="corrupted">' in page
    assert '<figure id="corruption"' in page
    assert "200 test images" in page
    assert "shot noise" in page
    assert "at severities 1, 3, 5" in page
    assert "Differences on corrupted images" in page
    assert page == render(view)


@pytest.mark.parametrize("found", [robustness(ARMS[1:]), robustness(severities=(5,))], ids=["one arm", "one severity"])
def test_any_set_of_corrupted_images_has_a_section(view: ReportView, found: RobustnessResult) -> None:
    page = render(replace(view, comparison={**view.comparison, "robustness": json.loads(found.model_dump_json())}))
    assert '<figure id="corruption"' in page


def test_a_study_without_corrupted_images_has_no_section(made_up: MadeUp) -> None:
    page = render(made_up(arms=ARMS, seeds=2, trials=1, length=2))
    assert "corrupted" not in page


def test_the_least_error_of_each_kind_is_marked(view: ReportView) -> None:
    document = ComparisonDocument.model_validate(view.comparison)
    kinds = next(corruption_detail(document))
    names = [column.name for column in kinds.columns[1:]]
    rows = {
        kind.text: {name: (cell.text, cell.style == "strong") for name, cell in zip(names, cells, strict=True)}
        for kind, *cells in kinds.rows
    }
    assert rows["fog"] == {"dense": ("22.00", True), "dropout": ("32.00", False)}
    assert rows["shot noise"] == {"dense": ("36.00", False), "dropout": ("26.00", True)}
    (arms,) = corruption_tables(document)
    dense = next(cells for name, *cells in arms.rows if name.text == "dense")
    assert [cell.text for cell in dense] == ["10.00", "29.00", "1.000", "7.5"]


def test_the_sentence_names_the_errors_the_fewest_first(view: ReportView) -> None:
    text = sentence(ComparisonDocument.model_validate(view.comparison))
    assert "mean error on corrupted images: dense 29.00%, dropout 29.00%" in text
    assert corruption_errors({"a": 0.3, "b": 0.2}) == "mean error on corrupted images: b 20.00%, a 30.00%"


def test_trials_give_the_mean_error_of_the_retrained_models_of_an_arm() -> None:
    def trial(phase: str, seed: int, error: float | None) -> Trial:
        result = {} if error is None else {"robustness": {"errors": {"fog": [error, error]}}}
        return Trial("dense", phase, seed, seed, "complete", result=result)

    found = [trial("retrain", 0, 0.2), trial("retrain", 1, 0.4), trial("search", 0, 0.9), trial("retrain", 2, None)]
    assert corruption_errors_of(found) == {"dense": pytest.approx(0.3)}
    assert corruption_errors_of([trial("retrain", 0, None)]) == {}
