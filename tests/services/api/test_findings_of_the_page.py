"""What the page shows of a finished study: verdict, accuracies with intervals, costs, the model to ship, failures."""

from typing import Any

import httpx
import pytest

from services.analysis.comparison import ArmResult, BudgetResult, ComparisonDocument, Cost, Spending
from services.analysis.seed_metrics import Accuracy
from services.files.study_dir import Folder
from services.store import Store


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


def arm(accuracies: dict[int, float], **changes: Any) -> ArmResult:
    """An arm of two minutes and 4,020 sample passes, with the accuracies of its seeds."""
    spent = Spending(sample_passes=2010, seconds=60)
    values: dict[str, Any] = {"role": "baseline", "seeds_cover": "retraining", "trials": 4, "failed": 0, "pruned": 0}
    values |= {"missing_seeds": [], "cost": Cost(search=spent, retrain=spent, overhead_seconds=0)}
    values |= {"validation_accuracy": None, "test_accuracy": Accuracy.of(accuracies) if accuracies else None}
    values |= {"exported_seed": 0, "parameters": 7674, "macs": 85632, "macs_per_seed": {}, "latency_ms": None}
    return ArmResult(**{**values, "architecture": None, "settings": {}, **changes})


def document(**arms: ArmResult) -> ComparisonDocument:
    budget = BudgetResult(per_arm=4020, tolerance=0.02)
    return ComparisonDocument(
        study="tiny", budget=budget, arms=arms, pairs=[], ranking=None, ranking_seeds=[], reason="nothing was compared"
    )


@pytest.fixture
def finished(client, study, store, settings) -> Folder:
    """A study of ann that is complete, and the folder in which its files are to be."""
    client("ann").post("/v1/studies", json=study)
    row = store.queued_study("tiny")
    store.create_study("tiny", config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
    store.acquire_lease("worker", seconds=600)
    store.finish_queued("tiny", "worker", "complete")
    folder = Folder(settings.folder("tiny"))
    folder.comparison.parent.mkdir(parents=True)
    return folder


@pytest.fixture
def visitor(client, store) -> httpx.Client:
    found = client(None)
    found.post("/login", data={"token": store.create_token("", owner="ann", scope="write")[1]})
    return found


def test_the_page_has_the_verdict_and_the_accuracies_with_their_intervals(visitor, finished):
    written = document(
        dense=arm({0: 0.90, 1: 0.91, 2: 0.92}, description="<em>whole</em>"), dropout=arm({0: 0.5}), broken=arm({})
    )
    finished.comparison.write_text(written.model_dump_json())
    text = visitor.get("/studies/tiny").text
    assert "Not shown which arm is best: nothing was compared." in text
    # Mean 0.91 and standard deviation 0.01 of three seeds; Student's t for two degrees of freedom is 4.303.
    assert '<td class="number strong">91.0%</td>' in text
    assert "88.5% – 93.5%" in text
    assert '<span class="muted">1 seed</span>' in text  # of one there is no interval
    assert "no retrained model" in text
    assert "&lt;em&gt;whole&lt;/em&gt;" in text
    for told in ("85,632", "7,674", "4,020", "2 min"):
        assert told in text


def test_intervals_are_drawn_from_the_lowest_to_the_highest_end(visitor, finished):
    finished.comparison.write_text(
        document(dense=arm({0: 0.9, 1: 0.91, 2: 0.92}), dropout=arm({0: 0.5})).model_dump_json()
    )
    text = visitor.get("/studies/tiny").text
    # 160 units with 5% left at both sides: 0.5 is the lowest, the upper end of the interval of `dense` the highest.
    assert 'cx="8.0"' in text
    assert 'x2="152.0"' in text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"schema_version": 9}', b"[]"])
def test_a_comparison_that_cannot_be_read_takes_no_page_down(visitor, finished, content):
    finished.comparison.write_bytes(content)
    answer = visitor.get("/studies/tiny")
    assert answer.status_code == 200
    assert "Verdict" not in answer.text
    assert "Trials by arm" in answer.text


def test_a_comparison_that_was_written_anew_is_read_anew(visitor, finished):
    finished.comparison.write_text(document(dense=arm({0: 0.5})).model_dump_json())
    assert "50.0%" in visitor.get("/studies/tiny").text
    finished.comparison.write_text(document(dense=arm({0: 0.625})).model_dump_json())
    assert "62.5%" in visitor.get("/studies/tiny").text


def test_failures_are_told_by_reason_once(visitor, finished, store):
    for number, reason in enumerate(("out of memory", "out of memory", "it diverged")):
        trial = store.add_trial("tiny", arm="dense", phase="search", number=number, seed=0, experiment={}, planned=1).id
        store.finish_trial(trial, "failed", reason=reason)
    text = " ".join(visitor.get("/studies/tiny").text.split())
    assert '<strong>dense</strong>, 2 trials: <span class="reason">out of memory</span>' in text
    assert '<strong>dense</strong>, 1 trial: <span class="reason">it diverged</span>' in text
