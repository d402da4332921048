"""A study in Python: the keys and the errors of a study file, and results that are those of this very study."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import nas_blockout as nb
from services.execution.driver import ArmProgress, Progress
from services.files.study_dir import Folder
from services.finalize.finalize import write_comparison
from services.python_api import StudyNotRun
from services.python_api.study_handle import told
from services.store import Store
from services.study_config.errors import StudyError, StudyNotFound
from tests.services.tiny import TINY

KEYS = {key: value for key, value in TINY.items() if key not in ("schema_version", "name")}
IMAGES, LABELS = np.random.default_rng(0).random((60, 6, 6)), np.arange(60) % 3
DATA = nb.ArrayData((IMAGES, LABELS), (IMAGES[:9], LABELS[:9]), (IMAGES[:6], LABELS[:6]))


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NAS_BLOCKOUT_TRACKING_URI", "none")
    monkeypatch.chdir(tmp_path)


def test_a_study_from_code_is_the_study_of_the_file_with_the_same_keys(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    built, read = nb.Study("tiny", **KEYS), nb.Study.from_yaml("tiny.yaml")
    assert built.to_json() == read.to_json()
    assert built.resolved.hash == read.resolved.hash
    assert not (tmp_path / "home").exists()  # nothing is written to make one


def test_keys_of_a_file_are_changed_as_by_set_on_the_command_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    changed = nb.Study.from_yaml("tiny.yaml", changes={"retrain.seeds": [7], "question": "yes: no?"})
    assert changed.resolved.config.retrain.seeds == [7]
    assert changed.resolved.config.question == "yes: no?"
    assert nb.Study.from_yaml("quickstart").name == "quickstart"
    with pytest.raises(StudyNotFound, match=r"no bundled study 'quickstat'.*quickstart"):
        nb.Study.from_yaml("quickstat")


def test_all_errors_are_told_at_once_in_the_words_of_a_study_file(tmp_path):
    wrong = {**TINY, "bugdet": {}, "training": {"epochs": 0}, "arms": {"dense": {"space": ["trainig"]}}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(StudyError) as of_file:
        nb.Study.from_yaml("wrong.yaml")
    with pytest.raises(StudyError) as of_code:
        nb.Study("tiny", **{key: value for key, value in wrong.items() if key not in ("schema_version", "name")})
    told_by_file = sorted(str(each) for each in of_file.value.violations)
    assert len(told_by_file) == 3
    assert sorted(str(each) for each in of_code.value.violations) == told_by_file
    assert str(of_code.value).startswith("Study('tiny'): ")


def test_arrays_are_part_of_the_identity_and_are_written_when_they_are_read(tmp_path):
    keys = {**KEYS, "data": DATA, "budget": {"trainings": 3}}
    study = nb.Study("arrays", **keys)
    assert study.to_json()["data"]["content"] == DATA.content
    assert not (tmp_path / "home").exists()
    notes = study.validate()
    assert notes[0] == "arrays: 69 images of 3 classes; 60 train, 9 validation"  # those of the test are not read
    assert (tmp_path / "home" / "data" / "arrays" / f"{DATA.content}.safetensors").is_file()
    other = nb.ArrayData((IMAGES * 0.5, LABELS), (IMAGES[:9], LABELS[:9]))
    assert nb.Study("arrays", **{**keys, "data": other}).resolved.hash != study.resolved.hash
    augmented = nb.Study("arrays", **{**keys, "data": {"name": DATA, "augment": "shift"}})
    assert augmented.resolved.data.augment == "shift"


def test_arrays_have_folds_by_a_setting_and_a_seed_for_each():
    keys = {key: value for key, value in KEYS.items() if key != "retrain"}
    study = nb.Study("arrays", **{**keys, "data": {"name": DATA, "folds": 3}, "budget": {"trainings": 4}})
    assert study.resolved.config.retrain.seeds == [0, 1, 2]
    told = "the 69 images of train and validation are divided anew into 3 folds of 23 images; fold 0 is for validation"
    assert any(told in note for note in study.validate())


def test_a_study_is_checked_against_its_arrays_when_it_is_made():
    with pytest.raises(StudyError, match="train_samples: must be at most the 60 images"):
        nb.Study("arrays", **{**KEYS, "data": {"name": DATA, "train_samples": 61}}).validate()
    arms = {"wide": {"method": {"name": "blockout", "clusters": 20}, "distillation": {}}}
    with pytest.raises(StudyError, match="clusters"):
        nb.Study("arrays", **{**KEYS, "data": DATA, "budget": {"trainings": 3}, "arms": arms})


def test_relative_paths_are_relative_to_the_current_folder(tmp_path):
    study = nb.Study("own", **{**KEYS, "data": {"name": "imagefolder", "folder": "photos"}, "budget": {"trainings": 3}})
    assert study.resolved.data.folder == str(tmp_path / "photos")


def test_the_home_folder_is_that_of_the_call_before_that_of_the_environment(tmp_path):
    assert nb.Study("tiny", **KEYS).folder == tmp_path / "home" / "runs" / "tiny"
    assert nb.Study("tiny", home="there", **KEYS).folder == tmp_path / "there" / "runs" / "tiny"
    assert nb.Study("tiny", home="there", **KEYS).settings.store_url.endswith("/there/runs/nas_blockout.db")


@pytest.mark.parametrize("what", ["results", "trials", "verdict", "report", "models", "best", "comparison"])
def test_a_study_that_has_not_been_run_says_what_to_call_and_writes_nothing(tmp_path, what):
    with pytest.raises(StudyNotRun, match=r"study 'tiny' has not been run in .*: call run\(\)"):
        getattr(nb.Study("tiny", **KEYS), what)
    assert not (tmp_path / "home").exists()


@pytest.fixture
def finished(tmp_path, pretend):
    """A study with made-up trials, as its driver would have left it."""
    study = nb.Study("tiny", **KEYS)
    with Store.open(study.settings.store_url) as store:
        resolved = study.resolved
        store.create_study("tiny", config=resolved.to_json(), config_hash=resolved.hash, arms=list(resolved.arms))
        pretend(store, resolved, max_concurrent_trials=2)
        study.folder.mkdir(parents=True, exist_ok=True)
        write_comparison(resolved, store.trials("tiny"), Folder(study.folder), latency={})
    return study


def test_results_are_a_row_an_arm_and_a_row_a_trial(finished):
    document = json.loads((finished.folder / "comparison.json").read_text())
    results = finished.results
    assert set(results.index) == {"dense", "dropout"}
    tested = {arm: found["test_accuracy"] for arm, found in document["arms"].items() if found["test_accuracy"]}
    assert tested
    assert dict(results.test_accuracy.dropna()) == {arm: found["mean"] for arm, found in tested.items()}
    for arm, row in results.iterrows():
        assert row.sample_passes == sum(
            document["arms"][arm]["cost"][key]["sample_passes"] for key in ("search", "retrain")
        )
    trials = finished.trials
    assert len(trials) == len((finished.folder / "trials.csv").read_text().splitlines()) - 1
    assert dict(trials.groupby("arm").size()) == dict(results.trials)
    assert finished.verdict.answer in ("yes", "no", "not shown")
    assert str(finished.report).endswith("runs/tiny/report/index.html")
    assert finished.models == {}
    with pytest.raises(StudyNotRun, match=r"has no model to ship: .*`models` has what was exported"):
        _ = finished.best


def test_results_of_other_settings_under_the_same_name_are_not_taken_for_those_of_this_study(finished):
    other = nb.Study("tiny", **{**KEYS, "training": {"epochs": 1, "batch_size": 16}})
    with pytest.raises(StudyNotRun, match="are results of other settings"):
        _ = other.results
    assert len(nb.Study("tiny", **{**KEYS, "question": "another word"}).trials) == len(finished.trials)


def test_a_study_whose_results_are_gone_says_that_run_goes_on_with_it(finished):
    (finished.folder / "comparison.json").unlink()
    with pytest.raises(StudyNotRun, match=r"has not ended: call run\(\), which goes on with it"):
        _ = finished.results
    assert len(finished.trials)


def test_what_notebooks_show_is_escaped(finished):
    arms = {"dense": {"description": "<img src=x onerror=alert(1)>"}, "dropout": {"method": {"name": "dropout"}}}
    shown = nb.Study("other", **{**KEYS, "question": "<script>", "arms": arms})._repr_html_()
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert "no results yet" in shown
    assert finished.verdict.value.headline.split(":")[0] in finished._repr_html_()


def test_figures_of_a_report_hold_their_picture(finished):
    figures = finished.folder / "report" / "figures"
    figures.mkdir(parents=True)
    (figures / "accuracy.svg").write_text("<svg><script>alert(1)</script></svg>")
    shown = finished.report._repr_html_()
    assert "<script>" not in shown
    held = (
        finished.report.figures["accuracy"]._repr_html_().partition("data:image/svg+xml;base64,")[2].partition('"')[0]
    )
    assert base64.b64decode(held) == (figures / "accuracy.svg").read_bytes()
    assert "<summary>accuracy</summary>" in shown
    shutil.rmtree(finished.folder / "report")
    assert finished.report.figures == {}


def test_an_estimate_is_a_row_a_phase(tmp_path):
    estimated = nb.Study("tiny", **KEYS).estimate()
    assert [*estimated.frame.index] == [(arm, phase) for arm in ("dense", "dropout") for phase in ("search", "retrain")]
    assert estimated.frame.trials.sum() == estimated.value.total.trials
    assert "study tiny" in estimated._repr_html_()
    assert not (tmp_path / "home" / "runs").exists()


def test_progress_is_told_in_one_line():
    arms = (
        ArmProgress("dense", done=2, running=1, failed=0, best=0.5, share=0.5),
        ArmProgress("learned", done=1, running=1, failed=1, best=0.75, share=0.25),
    )
    assert told(Progress(arms, 12.4, 20.0)) == (
        "38% of the budget, 3 trials done, 2 running, 1 failed, best validation accuracy 75.0% (learned), 12 s, "
        "about 20 s left"
    )
    idle = ArmProgress("dense", done=0, running=0, failed=0, best=None, share=0.0)
    assert told(Progress((idle,), 1.0, None)) == "starting Ray ..."


def test_the_path_of_a_report_is_a_path(finished):
    assert Path(finished.report) == finished.report.path
