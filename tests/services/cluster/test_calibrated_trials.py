"""A trial that is to be calibrated: its errors are those of the one evaluation on test images."""

from pathlib import Path

import pytest

from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker

EXPERIMENT = {
    "data": {"name": "digits", "train_samples": 200},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 2},
}


def test_the_errors_before_are_those_that_the_trial_reports_and_the_likelihood_rises(tmp_path: Path) -> None:
    worker = Worker()
    worker.start(
        Task(1, EXPERIMENT, evaluates_test=True, checkpoint=str(tmp_path / "1.pt"), model=None, calibrates=True)
    )
    report = Report.from_text(worker.step().to_text())
    while not report.done:
        report = Report.from_text(worker.step().to_text())
    assert report.failure is None
    assert report.result is not None
    found = report.result["calibration"]
    for part, loss in (("test", "test_loss"), ("validation", "validation_loss")):
        assert found[part]["before"]["nll"]["value"] == pytest.approx(report.result[loss], rel=1e-4)
    assert found["test"]["before"]["images"] == report.result["test_images"]
    before, after = (found["validation"][when]["nll"]["value"] for when in ("before", "after"))
    assert after <= before
    assert 0.05 <= found["temperature"] <= 20
