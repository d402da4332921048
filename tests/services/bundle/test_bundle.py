"""A bundle holds what a study is made of, says whether it is whole, and holds nothing private."""

import base64
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from services.bundle import BundleError, check, pack
from services.bundle.checking import _REQUIRED, MOST_FILES
from services.bundle.private_texts import Privacy
from services.files.study_dir import Folder, commit_of, write_csv, write_json, write_yaml
from services.report import ReportView, write
from services.settings import Settings
from services.store import Store
from services.trial_record import Trial
from tests.services.report.conftest import made_up

ARMS = ["dense", "dropout", "blockout"]


def row(trial: Trial) -> dict[str, object]:
    keys = ("validation_accuracy", "test_accuracy", "parameters", "macs")
    return {
        "arm": trial.arm, "phase": trial.phase, "number": trial.number, "seed": trial.seed, "state": trial.state,
        "reason": trial.reason, "sample_passes": trial.sample_passes,
        **{key: trial.outcome.get(key) for key in keys}, "stale": False,
    }  # fmt: skip


def sized(view: ReportView) -> ReportView:
    """The same study, whose trials know the size of their networks as a real one's do."""
    arms = view.comparison["arms"]

    def known(trial: Trial) -> Trial:
        size = {key: arms[trial.arm][key] for key in ("parameters", "macs")}
        return replace(trial, result={**trial.outcome, **size}) if trial.is_model else trial

    return replace(view, trials=[known(trial) for trial in view.trials])


@pytest.fixture(scope="module")
def study() -> ReportView:
    return sized(made_up(arms=ARMS, seeds=3, trials=3, length=4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, study: ReportView) -> Path:
    """The folder of an installation with one finished study, which names a folder of its user in several places.

    Beside it, under the name `kept`, is a copy of what is in it.
    """
    user = tmp_path_factory.mktemp("home") / "ann"
    settings = settings_of(user)
    folder = Folder(settings.folder("made-up"))
    trials = [replace(t, reason=f"no file {user}/images/a.png") if t.state == "failed" else t for t in study.trials]
    write_yaml(folder.root / "study.yaml", {**study.study, "data": {"folder": f"{user}/images"}})
    write_json(folder.root / "environment.json", dict(study.environment))
    write_json(folder.comparison, study.comparison)
    write_csv(folder.root / "trials.csv", [row(trial) for trial in trials])
    write(replace(study, trials=trials), folder)
    (folder.models / "dense").mkdir(parents=True)
    (folder.models / "dense" / "model.pt2").write_bytes(b"\x00weights")
    (folder.models / "dense" / "card.md").write_text("# dense")
    with Store.open(settings.store_url) as store:
        store.create_study("made-up", config={"name": "made-up"}, config_hash="0" * 16, arms=ARMS)
    shutil.copytree(user, user.with_name("kept"))
    return user


def settings_of(user: Path) -> Settings:
    settings = Settings.from_environment({"NAS_BLOCKOUT_HOME": str(user / "studies")})
    return replace(settings, data=user / "data", api_token="s3cr3t-token")


@pytest.fixture
def installation(whole: Path) -> Settings:
    """The installation as it was made, whatever other tests did to it."""
    return restored(whole)


def restored(whole: Path) -> Settings:
    shutil.rmtree(whole)
    shutil.copytree(whole.with_name("kept"), whole)
    return settings_of(whole)


@pytest.fixture(scope="module")
def files(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """What a bundle of it holds, without its models."""
    return contents(bundled(restored(whole), tmp_path_factory.mktemp("bundle") / "a.tar.gz"))


def bundled(settings: Settings, path: Path, *, models: bool = False) -> Path:
    home = settings.home.parent
    return pack(settings, "made-up", path, models=models, home=home).path


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        return {name.partition("/")[2]: file.read() for name, file in files.items() if file is not None}


def packed(path: Path, files: Mapping[str, bytes], *, sums: bool = True) -> Path:
    """Write files as somebody else would, with fresh hashes."""
    files = {name: data for name, data in files.items() if name != "SHA256SUMS" or not sums}
    if sums:
        lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        files = {**files, "SHA256SUMS": lines.encode()}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"made-up/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_a_bundle_is_whole_and_its_numbers_are_those_of_its_rows(installation: Settings, tmp_path: Path) -> None:
    path = bundled(installation, tmp_path / "a.tar.gz", models=True)
    found = check(path)
    assert found.problems == ()
    assert found.study == "made-up"
    assert found.numbers > 60
    files = contents(path)
    assert found.files == len(files) - 1
    assert set(_REQUIRED) | {"constraints.txt", "models/dense/model.pt2", "report/tables/arms.csv"} <= files.keys()
    assert "models/dense/model.pt2" not in contents(bundled(installation, tmp_path / "b.tar.gz"))
    assert "NAS_BLOCKOUT_HOME=$PWD/again nas-blockout run study.yaml" in files["README.md"].decode()
    lines = files["constraints.txt"].decode().splitlines()
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if line.startswith("mlflow==None") or "+" in line]


def test_the_same_study_is_the_same_bytes(installation: Settings, tmp_path: Path) -> None:
    first, second = bundled(installation, tmp_path / "a.tar.gz"), bundled(installation, tmp_path / "b.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        entries = archive.getmembers()
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {(0, 0, 0, "", "", 0o644)}
    assert [e.name for e in entries] == sorted(e.name for e in entries)


def test_folders_of_the_user_stay_out_of_it_and_that_is_said(installation: Settings, tmp_path: Path) -> None:
    files = contents(bundled(installation, tmp_path / "a.tar.gz"))
    home = str(installation.home.parent).encode()
    page = files["report/index.html"]
    assert not [name for name, data in files.items() if home in data]
    inside = [base64.b64decode(found) for found in re.findall(rb"data:text/csv;base64,([A-Za-z0-9+/=]+)", page)]
    assert any(b"no file images/a.png" in table for table in inside)
    assert not [table for table in inside if home in table]
    assert "folder: images" in files["study.yaml"].decode()
    assert "`study.yaml` (1)" in files["README.md"].decode()


def test_a_file_with_a_secret_is_refused_and_nothing_is_written(installation: Settings, tmp_path: Path) -> None:
    study = Folder(installation.folder("made-up")).root / "study.yaml"
    study.write_text(study.read_text() + "note: s3cr3t-token\n")
    with pytest.raises(BundleError, match=r"study\.yaml holds a secret"):
        bundled(installation, tmp_path / "a.tar.gz")
    assert not list(tmp_path.glob("*a.tar.gz*"))


def test_a_model_that_names_a_folder_of_the_user_is_not_changed_but_refused(
    installation: Settings, tmp_path: Path
) -> None:
    card = Folder(installation.folder("made-up")).models / "dense" / "card.md"
    card.write_text(f"weights of {installation.home.parent}/weights.safetensors")
    with pytest.raises(BundleError, match="without --models"):
        bundled(installation, tmp_path / "a.tar.gz", models=True)


def test_an_unfinished_study_has_no_bundle(installation: Settings, tmp_path: Path) -> None:
    Folder(installation.folder("made-up")).comparison.unlink()
    with pytest.raises(BundleError, match="has not finished"):
        bundled(installation, tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/ann/images/a", "images/a"),
        ("at '/home/ann'", "at '.'"),
        ("/home/annette/x", "/home/annette/x"),
        ("/mnt/home/ann/x", "/mnt/home/ann/x"),
        ("file:///home/ann/x y", "x y"),
    ],
)
def test_only_whole_folders_are_made_relative(text: str, clean: str) -> None:
    assert Privacy(("/home/ann",), ()).cleaned("a.csv", text.encode())[0].decode() == clean


def changed_rows(files: Mapping[str, bytes], change: Callable[[dict[str, str]], None]) -> dict[str, bytes]:
    rows = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    for each in rows:
        change(each)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return {**files, "trials.csv": out.getvalue().encode()}


def test_a_changed_file_is_named(files: Mapping[str, bytes], tmp_path: Path) -> None:
    touched = packed(tmp_path / "b.tar.gz", {**files, "epochs.csv": b"trial\n1\n", "more.txt": b""}, sums=False)
    problems = check(touched).problems
    assert "epochs.csv is not the file that was bundled: its hash differs" in problems
    assert "more.txt has no hash in SHA256SUMS" in problems
    assert check(packed(tmp_path / "c.tar.gz", {k: v for k, v in files.items() if k != "trials.csv"})).problems == (
        "trials.csv is missing",
    )


def test_rows_that_say_other_than_the_comparison_are_found_whatever_the_hashes(
    files: Mapping[str, bytes], tmp_path: Path
) -> None:

    def better(each: dict[str, str]) -> None:
        if (each["arm"], each["phase"], each["seed"]) == ("dense", "retrain", "1"):
            each["test_accuracy"] = "0.999"

    problems = check(packed(tmp_path / "b.tar.gz", changed_rows(files, better))).problems
    assert any(problem.startswith("dense, test_accuracy, mean: comparison.json has") for problem in problems)
    assert any(problem.startswith("blockout against dense, difference") for problem in problems)

    def without(each: dict[str, str]) -> None:
        each["state"] = "failed" if (each["arm"], each["phase"]) == ("dropout", "search") else each["state"]

    problems = check(packed(tmp_path / "c.tar.gz", changed_rows(files, without))).problems
    assert [problem.partition(":")[0] for problem in problems] == ["dropout, failed"] or "dropout, pruned" in problems[
        -1
    ]
    document = json.loads(files["comparison.json"])
    document["pairs"][0]["p_holm"] /= 2
    problems = check(
        packed(tmp_path / "d.tar.gz", {**files, "comparison.json": json.dumps(document).encode()})
    ).problems
    assert len(problems) == 1
    assert "p_holm" in problems[0]


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b"{}", b'{"arms": {"dense": 3}, "pairs": []}', b"\xff", b"[" * 100_000]
)
def test_a_comparison_that_makes_no_sense_is_told(content: bytes, files: Mapping[str, bytes], tmp_path: Path) -> None:
    problems = check(packed(tmp_path / "b.tar.gz", {**files, "comparison.json": content})).problems
    assert any("cannot be computed again" in problem for problem in problems)


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../evil")],
        [entry("/etc/passwd")],
        [entry("made-up/../../evil")],
        [entry("made-up/a", tarfile.SYMTYPE, link="/etc/passwd")],
        [entry("made-up/a", tarfile.LNKTYPE, link="made-up/b")],
        [entry("made-up/a", tarfile.FIFOTYPE)],
        [entry("made-up/a", tarfile.CHRTYPE)],
        [entry("made-up/a"), entry("made-up/a")],
        [entry("made-up/a"), entry("other/a")],
        [entry("alone")],
        [entry(f"made-up/{number}") for number in range(MOST_FILES + 1)],
    ],
)
def test_what_no_bundle_holds_is_refused(entries: list[tarfile.TarInfo], tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for each in entries:
            archive.addfile(each, io.BytesIO(b""))
    with pytest.raises(BundleError):
        check(path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.tar.gz"], "nothing is extracted"


def test_a_header_that_promises_more_than_is_read_is_refused(tmp_path: Path) -> None:
    head = entry("made-up/comparison.json", size=2**40).tobuf(tarfile.PAX_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(head))
    with pytest.raises(BundleError, match="more than"):
        check(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("data", [b"", b"no archive", gzip.compress(b"no archive"), gzip.compress(b"\0" * 10240)])
def test_a_file_that_is_no_bundle_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(BundleError):
        check(tmp_path / "a.tar.gz")


def test_half_a_bundle_is_refused(installation: Settings, tmp_path: Path) -> None:
    path = bundled(installation, tmp_path / "a.tar.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BundleError):
        check(path)


def test_checking_imports_neither_torch_nor_the_store() -> None:
    code = "import sys, services.bundle.checking; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "[]"


def test_a_commit_is_read_where_there_is_a_checkout(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git = tmp_path / "main" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(tmp_path / "main") is None, "nothing is committed yet"
    (git / "packed-refs").write_text(f"# pack-refs\n{'b' * 40} refs/heads/main\n")
    assert commit_of(tmp_path / "main") == "b" * 40
    (git / "refs" / "heads" / "main").write_text(f"{'a' * 40}\n")
    assert commit_of(tmp_path / "main") == "a" * 40
    (git / "worktrees" / "other").mkdir(parents=True)
    (git / "worktrees" / "other" / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "worktrees" / "other" / "commondir").write_text("../..\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".git").write_text(f"gitdir: {git / 'worktrees' / 'other'}\n")
    assert commit_of(tmp_path / "other") == "a" * 40
    (git / "HEAD").write_text(f"{'c' * 40}\n")
    assert commit_of(tmp_path / "main") == "c" * 40
