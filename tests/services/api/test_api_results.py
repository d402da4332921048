"""What a study leaves behind, through the API: found by what the store knows, and by nothing that a request says."""

import base64
import csv
import hashlib
import io
import json
from pathlib import Path

import pytest

from services.files.study_dir import Folder
from services.store import Store

ARCHITECTURE = {"schema_version": 1, "clusters": 1, "layers": []}
FILES = {"model.onnx": b"\x00onnx", "card.md": b"# A card", "architecture.json": b"{}", "verification.json": b"{}"}


@pytest.fixture
def finished(ann, study, store: Store, settings) -> Folder:
    """A study with a retrained and exported model, its files and a secret beside them."""
    ann.post("/v1/studies", json=study)
    row = store.queued_study("tiny")
    store.create_study("tiny", config=row.document, config_hash=row.config_hash, arms=["dense", "dropout"])
    trial = store.add_trial("tiny", arm="dense", phase="retrain", number=0, seed=3, experiment={}, planned=100).id
    store.start_attempt(trial)
    store.record_epochs(trial, [{"epoch": 0, "sample_passes": 100, "seconds": 1.5}])
    result = {"architecture": ARCHITECTURE, "architecture_hash": "cafe", "test_accuracy": 0.5}
    store.finish_trial(trial, "complete", score=0.5, result=result)
    bad = store.add_trial("tiny", arm="dropout", phase="search", number=0, seed=3, experiment={}, planned=100).id
    store.finish_trial(bad, "failed", reason="=HYPERLINK(1)")
    folder = Folder(settings.folder("tiny"))
    (folder.models / "dense").mkdir(parents=True)
    for name, content in FILES.items():
        (folder.models / "dense" / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    store.add_export(trial, path="/elsewhere/on/another/machine", hashes=hashes, verified=True)
    (folder.models / "dense" / "secret").write_text("not for you")
    folder.report.parent.mkdir(parents=True)
    folder.report.write_text("<!doctype html><title>tiny</title>")
    folder.comparison.write_text(json.dumps({"study": "tiny"}))
    return folder


def test_the_report_is_shown_and_nothing_in_it_runs_but_its_own_script(ann, finished):
    answer = ann.get("/v1/studies/tiny/report")
    assert answer.text == "<!doctype html><title>tiny</title>"
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    script = (Path(__file__).parents[3] / "services" / "templates" / "report.js").read_bytes()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert directives["script-src"] == f"'sha256-{digest}'"
    assert directives["sandbox"].split() == ["allow-scripts", "allow-downloads"], "it is not of this origin"


def test_the_comparison_is_json(ann, finished):
    assert ann.get("/v1/studies/tiny/comparison").json() == {"study": "tiny"}


def test_trials_are_a_table_that_no_spreadsheet_runs(ann, finished):
    answer = ann.get("/v1/studies/tiny/trials")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["arm"], row["state"], row["seed"]) for row in rows] == [
        ("dense", "complete", "3"),
        ("dropout", "failed", "3"),
    ]
    assert rows[1]["reason"] == "'=HYPERLINK(1)"


def test_trials_come_in_pages_that_name_the_next(ann, finished):
    first = ann.get("/v1/studies/tiny/trials?limit=1")
    second = ann.get(first.links["next"]["url"])
    rows = [row for page in (first, second) for row in csv.DictReader(io.StringIO(page.text))]
    assert [row["arm"] for row in rows] == ["dense", "dropout"]
    assert "link" not in second.headers
    assert "link" not in ann.get("/v1/studies/tiny/trials").headers
    for wrong in ("limit=0", "limit=1001", "after=x"):
        assert ann.get(f"/v1/studies/tiny/trials?{wrong}").status_code == 422


def test_architectures_are_those_of_retrained_models(ann, finished):
    assert ann.get("/v1/studies/tiny/architectures").json() == [
        {"arm": "dense", "trial": 1, "seed": 3, "hash": "cafe", "architecture": ARCHITECTURE}
    ]


def test_models_are_downloaded_by_the_addresses_that_are_listed(ann, finished):
    (model,) = ann.get("/v1/studies/tiny/models").json()
    assert (model["arm"], model["verified"]) == ("dense", True)
    assert {each["name"] for each in model["files"]} == set(FILES)
    for each in model["files"]:
        answer = ann.get(each["url"])
        assert answer.content == FILES[each["name"]]
        assert hashlib.sha256(answer.content).hexdigest() == each["sha256"]
        assert answer.headers["etag"] == f'"{each["sha256"]}"'
        assert "attachment" in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    "path",
    [
        "dense/secret", "dense/..%2f..%2freport%2findex.html", "..%2f..%2fstore.db/x", "dropout/model.onnx",
        "dense/%2fetc%2fpasswd", "dense/model.onnx%00", "dense/.", "DENSE/model.onnx", "dense/%e2%80%ae",
    ],
)  # fmt: skip
def test_nothing_else_is_had_by_any_name(ann, finished, told, path):
    told(ann.get(f"/v1/studies/tiny/models/{path}"), 404, "not_found")


def test_a_file_that_has_changed_is_not_handed_out(ann, finished, told):
    (finished.models / "dense" / "model.onnx").write_bytes(b"something else")
    found = told(ann.get("/v1/studies/tiny/models/dense/model.onnx"), 409, "changed")
    assert found["remedy"] == "`nas-blockout export tiny dense` writes it again"


def test_files_come_from_shared_storage_where_that_is_used(client, finished, limited, settings, tmp_path, told):
    shared = tmp_path / "shared"
    finished.root.rename(tmp_path / "moved")
    shared.mkdir()
    (tmp_path / "moved").rename(shared / "tiny")
    ann = client("ann", to=limited(artifacts=f"file://{shared}"))
    assert ann.get("/v1/studies/tiny/comparison").json() == {"study": "tiny"}
    assert ann.get("/v1/studies/tiny/report").text.endswith("<title>tiny</title>")
    (model,) = ann.get("/v1/studies/tiny/models").json()
    assert {each["name"]: ann.get(each["url"]).content for each in model["files"]} == FILES
    (shared / "tiny" / "report" / "index.html").unlink()
    told(ann.get("/v1/studies/tiny/report"), 404, "not_finished")
    finished.report.parent.mkdir(parents=True)
    finished.report.write_text("written before there was shared storage")
    assert ann.get("/v1/studies/tiny/report").text == "written before there was shared storage"
    broken = client("ann", to=limited(artifacts="nonsense://bucket"))
    answer = broken.get("/v1/studies/tiny/comparison")
    told(answer, 503, "unavailable")
    assert "bucket" not in answer.text


def test_before_the_end_there_is_nothing_but_trials(ann, study, told):
    ann.post("/v1/studies", json=study)
    for path in ("report", "comparison"):
        told(ann.get(f"/v1/studies/tiny/{path}"), 404, "not_finished")
    assert ann.get("/v1/studies/tiny/models").json() == []
    assert ann.get("/v1/studies/tiny/architectures").json() == []
    assert ann.get("/v1/studies/tiny/trials").text == "trial\n"
