"""Files on storage that machines share are there whole or not at all; trials go on with them on another machine."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from services.api import application
from services.api.health import Probes
from services.cluster.tasks import Task
from services.cluster.worker import Worker
from services.files.remote import (
    ArtifactError,
    fetch,
    fetch_folder,
    place_of,
    put,
    put_folder,
    reading,
    remove,
    writing,
)
from services.settings import Settings, SettingsError
from services.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # s3fs keeps its connections to the end

ROOT = "q7Rz_0vLw2-Xb9TnYd4K"
EXPERIMENT: dict[str, Any] = {
    "data": {"name": "digits", "train_samples": 50},
    "backbone": {"name": "convnet", "channels": [4], "hidden": [8]},
    "training": {"epochs": 4, "batch_size": 25},
}


@pytest.fixture(params=["file", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty folder on storage of every kind."""
    if request.param == "file":
        return f"file://{tmp_path / 'shared'}"
    return f"{request.getfixturevalue('storage')}/{tmp_path.name}"


def names(url: str, tmp_path: Path) -> set[str]:
    """What really lies below a URL, by its storage's own word."""
    if url.startswith("file://"):
        root = Path(url.removeprefix("file://"))
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    return {each["Key"].removeprefix(f"{prefix}/") for each in found}


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_put_is_fetched_replaced_and_removed(shared: str, tmp_path: Path) -> None:
    url, copy = f"{shared}/deep/down/one.txt", tmp_path / "copies" / "one.txt"
    assert fetch(url, copy) is False
    assert not copy.exists()
    for text in ("first", "second"):
        put(written(tmp_path / "one.txt", text), url)
        assert fetch(url, copy) is True
        assert copy.read_text() == text
    assert names(shared, tmp_path) == {"deep/down/one.txt"}
    remove(url)
    remove(url)
    assert names(shared, tmp_path) == set()
    assert fetch(url, copy) is False


def test_a_failed_writer_leaves_what_was_there(shared: str, tmp_path: Path) -> None:
    url = f"{shared}/state.pt"
    with writing(url) as path:
        path.write_text("whole")
    with pytest.raises(ZeroDivisionError), writing(url) as path:
        path.write_text(f"ha{1 // 0}")
    with reading(url) as path:
        assert path.read_text() == "whole"
    assert names(shared, tmp_path) == {"state.pt"}


def test_a_place_without_a_scheme_is_a_file_of_this_machine(tmp_path: Path) -> None:
    place = place_of(tmp_path / "study" / "1.pt", tmp_path / "study", None)
    assert place == str(tmp_path / "study" / "1.pt")
    Path(place).parent.mkdir()
    with writing(place) as path:
        path.write_text("here")
    with reading(place) as path:
        assert path == Path(place)
    remove(place)
    assert not Path(place).exists()
    assert place_of(tmp_path / "study" / "a" / "1.pt", tmp_path / "study", "s3://b/s") == "s3://b/s/a/1.pt"


def test_a_folder_comes_back_as_it_was_without_what_is_hidden(shared: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for name in ("comparison.json", "report/index.html", "models/a b/model.pt2", ".work/checkpoints/1.pt"):
        written(folder / name, name)
    put_folder(folder, shared, last="comparison.json")
    assert names(shared, tmp_path) == {"comparison.json", "report/index.html", "models/a b/model.pt2"}
    assert fetch_folder(shared, tmp_path / "again") is True
    for name in names(shared, tmp_path):
        assert (tmp_path / "again" / name).read_text() == name
    assert not (tmp_path / "again" / ".work").exists()
    assert fetch_folder(f"{shared}/nothing", tmp_path / "none") is False
    assert not (tmp_path / "none").exists()


def test_the_file_that_says_that_all_are_there_comes_last(tmp_path: Path) -> None:
    folder, shared = tmp_path / "study", tmp_path / "shared"
    for name in ("comparison.json", "report/index.html"):
        written(folder / name, name)
    written(shared / "report", "where a folder should be")
    with pytest.raises(ArtifactError, match=r"report/index\.html"):
        put_folder(folder, f"file://{shared}", last="comparison.json")
    assert names(f"file://{shared}", tmp_path) == {"report"}


@pytest.mark.parametrize("url", ["nosuch://bucket/file", "file:///dev/null/file"])
def test_storage_that_fails_is_one_error_that_names_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"shared storage .*NAS_BLOCKOUT_ARTIFACTS") as caught:
        put(written(tmp_path / "one", "1"), url)
    assert url in str(caught.value)


def test_a_bucket_that_is_missing_is_said_without_the_secret(storage: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="s3://missing/one") as caught:
        put(written(tmp_path / "one", "1"), "s3://missing/one")
    assert "kept-from-everyone" not in str(caught.value)


@pytest.mark.parametrize("url", ["shared", "/a b", "s3://", "s3://key:secret@bucket/x", "s3://bucket/x?token=1"])
def test_settings_take_no_relative_path_and_no_credentials_for_storage(url: str) -> None:
    with pytest.raises(SettingsError, match="NAS_BLOCKOUT_ARTIFACTS must be a URL") as caught:
        Settings.from_environment({"NAS_BLOCKOUT_ARTIFACTS": url})
    assert "secret@" not in str(caught.value)


def test_the_api_hands_out_files_that_lie_on_shared_storage_alone(shared: str, tmp_path: Path) -> None:
    files = {"comparison.json": "{}", "report/index.html": "<p>", "models/dense/verification.json": "[]"}
    for name, text in files.items():
        written(tmp_path / "elsewhere" / name, text)
    put_folder(tmp_path / "elsewhere", f"{shared}/tiny", last="comparison.json")
    settings = Settings.from_environment({"NAS_BLOCKOUT_HOME": str(tmp_path / "api"), "NAS_BLOCKOUT_API_TOKEN": ROOT})
    with Store.open(settings.store_url) as store:
        store.enqueue("tiny", document={}, config_hash="cafe", owner="admin")
        store.create_study("tiny", config={}, config_hash="cafe", arms=["dense"])
        trial = store.add_trial("tiny", arm="dense", phase="retrain", number=0, seed=0, experiment={}, planned=1).id
        store.add_export(trial, path="x", hashes={"verification.json": sha256("[]")}, verified=True)
        app = application(replace(settings, artifacts=shared), store, probes=Probes({}))

        async def fetched() -> dict[str, str]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
                headers = {"Authorization": f"Bearer {ROOT}"}
                paths = ("comparison", "report", "models/dense/verification.json")
                return {path: (await client.get(f"/v1/studies/tiny/{path}", headers=headers)).text for path in paths}

        found = asyncio.run(fetched())
    assert list(found.values()) == list(files.values())


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_trial_goes_on_on_another_machine_and_leaves_its_weights_for_the_driver(shared: str, tmp_path: Path) -> None:
    def run(task: Task, *, reports: int | None = None) -> list[dict[str, Any]]:
        worker, records = Worker(report_seconds=0), []
        worker.start(task)
        while reports is None or len(records) < reports:
            report = worker.step()
            assert report.failure is None
            records += [dict(record) for record in report.records]
            if report.done:
                break
        return [{key: record[key] for key in record if key != "seconds"} for record in records]

    def task(root: str) -> Task:
        return Task(1, EXPERIMENT, True, checkpoint=f"{root}/1.pt", model=f"{root}/1.safetensors")

    expected = run(task(str(tmp_path / "straight")))
    run(task(shared), reports=2)
    assert names(shared, tmp_path) == {"1.pt"}
    assert run(task(shared)) == expected
    assert names(shared, tmp_path) == {"1.pt", "1.safetensors"}
    assert fetch(f"{shared}/1.safetensors", tmp_path / "1.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "straight" / "1.safetensors").read_bytes()
