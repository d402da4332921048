"""What a release with version 1 of everything has written is read: study files, stored studies, queue, checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas_blockout.experiment import Experiment
from services.cluster.checkpoints import Continuation, read_checkpoint
from services.store import Store
from services.study_config.resolution import read, resolve, study_of
from services.study_config.resolved_study import Study, parse_resolved
from services.study_config.yaml_reader import bundled, read_document
from tests.once import once
from tests.services.program import store_of
from tests.services.version_1 import FOLDER, PLACES, by_trial, call, copied, expected, in_version_2, missing, unpack

FILES = sorted((FOLDER / "studies").glob("*.yaml"))


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of version 1 that may be changed: the first release to open its database does so."""
    return copied(once(tmp_path_factory, "version-1", unpack) / "home", tmp_path)


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with store_of(home) as opened:
        yield opened


def test_every_bundled_study_of_version_1_is_kept() -> None:
    assert {path.stem for path in FILES} <= bundled().keys()
    assert len(FILES) == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_bundled_study_of_version_1_became_the_same_study_of_version_2(path: Path) -> None:
    then, now = (_unnamed(resolve(read(file), source=str(file))) for file in (path, in_version_2(path.stem)))
    assert _in_the_papers_form(then) == now


def _in_the_papers_form(document: list[Any]) -> list[Any]:
    for arm in document[1]:
        method = arm["experiment"]["method"]
        if method["name"] in PLACES:
            key, then, now = PLACES[method["name"]]
            assert method[key] == then
            method[key] = now
    return document


def _unnamed(study: Study) -> list[Any]:
    """What a study does, without words (question, arms' names, descriptions), its budget, and how it is scored.

    These changed on purpose: tests/services/study_config/test_upgrade.py says how.
    """
    document = study.to_json()
    del document["budget"], document["question"]
    arms = [{key: value for key, value in arm.items() if key != "description"} for arm in document.pop("arms").values()]
    for arm in arms:
        del arm["experiment"]["training"]["evaluation_statistics"]
    return [{**document, "export": len(document["export"])}, arms]


def test_studies_are_listed(home: Path) -> None:
    assert missing(expected("list"), call(home, "list", "--json").json) == []


@pytest.mark.parametrize("study", ["complete", "halfway"])
def test_a_study_is_shown_as_it_was(home: Path, study: str) -> None:
    then, now = expected(f"show-{study}"), call(home, "show", study, "--json").json
    assert missing(by_trial(then.pop("trials")), by_trial(now.pop("trials"))) == []
    assert missing(then, now) == []


def test_what_a_study_is_shown_as_begins_with_its_verdict(home: Path) -> None:
    shown = call(home, "show", "complete").out
    assert shown.startswith("study complete: complete\n")
    parts = ["Not shown that learned structure helps", "Ship ", "earlier trials not listed: `--limit 0` lists all"]
    assert (places := [shown.index(part) for part in parts]) == sorted(places)
    assert "Ship " not in call(home, "show", "halfway").out  # which has not ended


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}'])
def test_a_study_whose_comparison_is_damaged_is_shown_without_its_verdict(home: Path, content: str) -> None:
    (home / "runs" / "complete" / "comparison.json").write_text(content)
    ended = call(home, "show", "complete")
    assert ended.out.startswith("study complete: complete\n")
    assert "search ended by" in ended.out
    assert "comparison.json cannot be read, run the study again to write it anew" in ended.err


def test_an_exported_model_is_shown_as_it_was(home: Path) -> None:
    folder = home / "runs" / "complete" / "models" / "blockout"
    assert missing(expected("show-model"), call(home, "show", folder, "--json").json) == []


@pytest.mark.parametrize("study", ["complete", "halfway"])
def test_a_stored_study_its_folder_and_its_file_are_the_same(home: Path, store: Store, study: str) -> None:
    stored = parse_resolved(store.study(study).config)
    assert study_of(read_document(home / "runs" / study / "study.yaml"), source="folder").to_json() == stored.to_json()
    written = resolve(read(FOLDER / f"{study}.yaml"), source="file")
    assert dict(written.arms) == dict(stored.arms)
    assert written.data == stored.data


def test_every_experiment_of_a_trial_is_read(store: Store) -> None:
    rows = [row for study in ("complete", "halfway") for row in store.trials(study)]
    assert len({row.arm for row in rows}) == 20
    assert [Experiment.from_json(row.experiment).seed for row in rows] == [row.seed for row in rows]


def test_every_study_gets_an_identity_once(home: Path, store: Store) -> None:
    found = [store.identity(), *(store.study(study).uuid for study in ("complete", "halfway"))]
    assert len({*found, ""}) == 4
    with store_of(home) as again:
        assert [again.identity(), *(again.study(study).uuid for study in ("complete", "halfway"))] == found


def test_a_queued_study_is_what_was_given_to_the_service(store: Store) -> None:
    row = store.queued_study("queued")
    assert row is not None
    assert row.source is not None
    written = resolve(read(FOLDER / "queued.yaml"), source="file")
    assert study_of(row.document, source="queue").to_json() == written.to_json()
    assert study_of(row.source, source="source").to_json() == written.to_json()
    assert [token.owner for token in store.tokens()] == ["team"]


def test_the_checkpoint_of_an_interrupted_trial_is_that_of_another_experiment_and_does_no_harm(
    home: Path, store: Store
) -> None:
    """Its trial begins anew: a checkpoint holds a digest of its experiment, in whose document keys were renamed."""
    (trial,) = [row for row in store.trials("halfway") if row.state == "running"]
    checkpoint = home / "runs" / "halfway" / ".work" / "checkpoints" / f"{trial.id}.pt"
    assert checkpoint.exists()
    assert {epoch.stage for epoch in store.epochs(trial.id)} == {"learn", "finetune"}
    assert read_checkpoint(checkpoint, Experiment.from_json(trial.experiment).to_json()) == Continuation()
