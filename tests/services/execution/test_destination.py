"""A job of the service runs only where its results lie where the service looks for them."""

from pathlib import Path

import pytest

from services.files.home_identity import place_identity
from services.settings import Settings, SettingsError
from services.store import Store
from tests.services.program import here, of


def settings_of(home: Path, **more: str) -> Settings:
    return Settings.from_environment(of(home, **more))


@pytest.fixture
def service(tmp_path: Path) -> tuple[str, str]:
    """The identities of the store and the home of a service."""
    settings = settings_of(tmp_path / "service")
    home = place_identity(settings, create=True)
    assert home is not None
    with Store.open(settings.store_url) as store:
        return store.identity(), home


def ended(home: Path, *words: str, **more: str) -> str:
    """What `run` says where it refuses; the study does not exist, which is what comes next where it does not refuse."""
    done = here("run", "no-such-study", *words, **of(home, **more))
    assert done.code == (3 if "no such" in done.err or "no-such" in done.err.splitlines()[-1] else 2), done.err
    return done.err


def test_a_job_goes_on_where_store_and_home_are_those_of_the_service(tmp_path: Path, service: tuple[str, str]) -> None:
    assert "no-such-study" in ended(tmp_path / "service", "--store-id", service[0], "--home-id", service[1])


def test_a_job_refuses_where_there_is_no_store_and_leaves_none_behind(tmp_path: Path, service: tuple[str, str]) -> None:
    said = ended(tmp_path / "job", "--store-id", service[0], "--home-id", service[1])
    assert said.splitlines()[-1] == (
        "error: NAS_BLOCKOUT_STORE_URL of the cluster names another store than that of the service, where nobody would "
        "find the results; nothing was run; start Ray with the NAS_BLOCKOUT_ variables of the service, then resume the "
        "study"
    )
    assert (
        f"note: expected the store {service[0]}; sqlite:///{tmp_path}/job/runs/nas_blockout.db is not a store" in said
    )
    assert not (tmp_path / "job").exists()


def test_a_job_refuses_where_another_store_is(tmp_path: Path, service: tuple[str, str]) -> None:
    with Store.open(settings_of(tmp_path / "job").store_url) as store:
        other = store.identity()
    assert other != service[0]
    assert f"is {other}\n" in ended(tmp_path / "job", "--store-id", service[0])


def test_a_job_refuses_where_the_store_is_right_and_the_home_is_not(tmp_path: Path, service: tuple[str, str]) -> None:
    url = settings_of(tmp_path / "service").store_url
    words = ("--store-id", service[0], "--home-id", service[1])
    for other in ("none", "made"):
        if other == "made":
            place_identity(settings_of(tmp_path / "job"), create=True)
        said = ended(tmp_path / "job", *words, NAS_BLOCKOUT_STORE_URL=url)
        assert "error: NAS_BLOCKOUT_HOME of the cluster names another place than that of the service" in said


def test_homes_are_different_places_and_shared_storage_is_one(tmp_path: Path) -> None:
    a, b = settings_of(tmp_path / "a"), settings_of(tmp_path / "b")
    assert place_identity(a) is None
    assert place_identity(a, create=True) == place_identity(a, create=True) == place_identity(a)
    assert place_identity(a) != place_identity(b, create=True)
    assert [path.name for path in (tmp_path / "a" / "runs").iterdir()] == [".identity"]
    one, two = (settings_of(tmp_path / name, NAS_BLOCKOUT_ARTIFACTS="s3://bucket/x") for name in "ab")
    assert place_identity(one) == place_identity(two)
    assert place_identity(one) != place_identity(settings_of(tmp_path, NAS_BLOCKOUT_ARTIFACTS="s3://bucket/y"))


def test_a_home_that_cannot_hold_an_identity_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SettingsError, match=r"NAS_BLOCKOUT_HOME must be a folder whose file runs/\.identity"):
        place_identity(settings_of(tmp_path), create=True)
