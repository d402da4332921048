"""Studies of one name on one shared storage: each has a folder of its own, and finds it again."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from services.files.remote import ArtifactError
from services.files.shared_place import claim_place, shared_place
from services.settings import Settings
from services.store import Store


def store_at(path: Path) -> Store:
    store = Store.open(f"sqlite:///{path}")
    store.create_study("tiny", config={}, config_hash="cafe", arms=["dense"])
    return store


def with_trial(store: Store) -> Store:
    store.add_trial("tiny", arm="dense", phase="search", number=0, seed=0, experiment={}, planned=1)
    return store


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Store]:
    with store_at(tmp_path / "one.db") as store:
        yield store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with store_at(tmp_path / "other.db") as store:
        yield store


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = f"file://{tmp_path / 'shared'}"
    if request.param == "s3":
        url = f"{request.getfixturevalue('storage')}/{tmp_path.name}"
    return Settings.from_environment({"NAS_BLOCKOUT_HOME": str(tmp_path / "home"), "NAS_BLOCKOUT_ARTIFACTS": url})


def claim(settings: Settings, store: Store) -> tuple[str | None, list[str]]:
    told: list[str] = []
    claim_place(settings, store, store.study("tiny"), log=told.append)
    return shared_place(settings, store, "tiny"), told


def fill(url: str) -> None:
    storage, folder = fsspec.url_to_fs(url)
    storage.makedirs(folder, exist_ok=True)
    storage.pipe_file(f"{folder}/comparison.json", b"{}")


def test_the_second_store_gets_a_folder_of_its_own_and_each_keeps_what_it_has(
    settings: Settings, one: Store, other: Store
) -> None:
    plain = f"{settings.artifacts}/tiny"
    assert claim(settings, one) == (plain, [])
    place, told = claim(settings, other)
    assert place == f"{plain}.{other.study('tiny').uuid[:8]}"
    assert told == [f"warning: {plain} belongs to a study of another store: the files of this one are in {place}"]
    assert (claim(settings, one), claim(settings, other)) == ((plain, []), (place, []))


def test_of_stores_that_come_at_the_same_moment_no_two_share_a_folder(
    settings: Settings, one: Store, other: Store
) -> None:
    together = threading.Barrier(2)

    def come(store: Store) -> str | None:
        together.wait()
        return claim(settings, store)[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(come, (one, other))
    assert None not in (first, second)
    assert first != second


def test_a_study_of_an_earlier_release_keeps_the_folder_that_it_filled(settings: Settings, one: Store) -> None:
    fill(f"{settings.artifacts}/tiny")
    assert claim(settings, with_trial(one)) == (f"{settings.artifacts}/tiny", [])


def test_a_new_study_does_not_take_what_somebody_else_has_filled(settings: Settings, one: Store) -> None:
    fill(f"{settings.artifacts}/tiny")
    assert shared_place(settings, one, "tiny") is None, "nothing there is its own"
    place, told = claim(settings, one)
    assert (place, len(told)) == (f"{settings.artifacts}/tiny.{one.study('tiny').uuid[:8]}", 1)


def test_a_study_whose_folder_another_store_has_taken_is_refused(settings: Settings, one: Store, other: Store) -> None:
    claim(settings, other)
    with pytest.raises(ArtifactError, match=r"of another store, .*set NAS_BLOCKOUT_ARTIFACTS to another URL"):
        claim(settings, with_trial(one))


def test_other_storage_is_begun_anew(settings: Settings, one: Store, tmp_path: Path) -> None:
    claim(settings, one)
    variables = {"NAS_BLOCKOUT_HOME": str(tmp_path), "NAS_BLOCKOUT_ARTIFACTS": str(tmp_path / "elsewhere")}
    assert claim(Settings.from_environment(variables), one)[0] == f"file://{tmp_path}/elsewhere/tiny"


def test_without_shared_storage_or_study_there_is_no_folder(one: Store, settings: Settings, tmp_path: Path) -> None:
    assert claim(Settings.from_environment({"NAS_BLOCKOUT_HOME": str(tmp_path)}), one) == (None, [])
    assert shared_place(settings, one, "nothing") is None
