"""Stores of old revisions, with studies in them: each is upgraded, and every study in it is read as what it was.

How they were made stands in ``tests/fixtures/old_stores/README.md``.
"""

import lzma
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nas_blockout.experiment import Experiment
from services import migrations
from services.store import Store, schema_version
from services.study_config.resolved_study import parse_resolved

FILES = sorted((Path(__file__).parents[2] / "fixtures" / "old_stores").glob("*.sql.xz"))
# These have fewer settings of a derivation than the first release, and no table of what each of them was.
BEFORE_VERSION_1 = ("096eba9", "ec30034")
FEWEST_STUDIES = 5


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.name.partition(".")[0])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """A revision, and a store as it left it, opened by this one."""
    path, revision = tmp_path_factory.mktemp("old") / "store.db", request.param.name.partition(".")[0]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(lzma.decompress(request.param.read_bytes()).decode())
    url = f"sqlite:///{path}"
    assert (schema_version.current(url) or "") < migrations.HEAD
    with Store.open(url) as opened:
        yield revision, opened


def stands(stored: Any, read: Any) -> bool:
    """Whether all that is stored is read as it stands; what was not stored may have been added."""
    if isinstance(stored, Mapping):
        return isinstance(read, Mapping) and all(key in read and stands(stored[key], read[key]) for key in stored)
    return bool(stored == read)


def test_every_study_is_read_as_what_it_was(old: tuple[str, Store]) -> None:
    revision, store = old
    lines = store.studies()
    assert len(lines) >= FEWEST_STUDIES
    for line in lines:
        row = store.study(line.name)
        study = parse_resolved(row.config)
        assert (study.name, tuple(study.arms)) == (row.name, row.arms)
        assert stands(row.config, study.to_json())
        assert study.hash == row.config_hash or revision in BEFORE_VERSION_1


def test_every_queued_study_is_read_as_what_it_was(old: tuple[str, Store]) -> None:
    revision, store = old
    rows = [store.queued_study(line.study) for line in store.queue()]
    assert len(rows) in (0, len(store.studies()))  # the first schema has no queue
    for row in rows:
        assert row is not None
        study = parse_resolved(row.document)
        assert study.name == row.study
        assert stands(row.document, study.to_json())
        assert study.hash == row.config_hash or revision in BEFORE_VERSION_1


def test_every_trial_is_that_of_its_arm(old: tuple[str, Store]) -> None:
    _, store = old
    for line in store.studies():
        arms = parse_resolved(store.study(line.name).config).arms
        trials = store.trials(line.name)
        assert [trial.arm for trial in trials] == list(arms)
        assert [Experiment.from_json(trial.experiment) for trial in trials] == [arm.experiment for arm in arms.values()]
        assert {store.epochs(trial.id)[0].metrics["validation_accuracy"] for trial in trials} == {0.5}


def test_what_acted_on_all_layers_still_does(old: tuple[str, Store]) -> None:
    """Its default has changed since: a revision that had no `placement` meant all layers."""
    revision, store = old
    placements = {
        trial.experiment["method"]["placement"]
        for line in store.studies()
        for trial in store.trials(line.name)
        if trial.experiment["method"]["name"] == "dropout"
    }
    assert placements == ({"hidden"} if revision == "b720c77" else {"all"})
