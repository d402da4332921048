"""What a release consists of: the sdist is the repository, the wheel its packages; both work where they are put."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path
from shutil import copy2

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nas_blockout
from tests.once import once

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nas_blockout", "search_spaces", "services")
NAME = f"nas_blockout-{nas_blockout.__version__}"
# What Docker Compose and kustomize read; no code of ours does.
MANIFESTS = {
    path.relative_to(ROOT).as_posix() for path in (ROOT / "services" / "kubernetes").rglob("*") if path.is_file()
}
FROM_A_CHECKOUT = {"services/Dockerfile", "services/databases.sql", *MANIFESTS}
ADDED_TO_SDIST = {"PKG-INFO", "setup.cfg"}
ADDED_TO_WHEEL = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def tracked() -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git work tree: which files are tracked is not known")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def build(folder: Path) -> None:
    """Build from a copy: setuptools writes beside what it builds, where other tests look."""
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        copy2(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` writes, made once a run."""
    return once(tmp_path_factory, "distributions", build) / "dist"


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    return dist / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="session")
def described(wheel: Path) -> Message:
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(f"{NAME}.dist-info/METADATA").decode())


def test_a_release_is_one_sdist_and_one_wheel(dist: Path, wheel: Path) -> None:
    assert {path.name for path in dist.iterdir()} == {f"{NAME}.tar.gz", wheel.name}


def test_the_sdist_is_the_repository(dist: Path) -> None:
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    names = {name for name in names if not name.startswith("nas_blockout.egg-info/")}
    assert names - tracked() == ADDED_TO_SDIST
    assert tracked() - names == set(), "add them to MANIFEST.in"


def test_the_wheel_is_the_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    ours = {name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert names - ours == {f"{NAME}.dist-info/{name}" for name in ADDED_TO_WHEEL}
    assert ours - names == FROM_A_CHECKOUT, "add them to package-data in pyproject.toml"


def test_package_data_names_files_that_are_there() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    named = [(package, pattern) for package, each in patterns.items() for pattern in each]
    assert [(package, pattern) for package, pattern in named if not any((ROOT / package).glob(pattern))] == []


def test_the_metadata_say_whose_it_is_and_where_it_comes_from(described: Message) -> None:
    assert described["Version"] == nas_blockout.__version__
    assert described["License-Expression"] == "Apache-2.0"
    assert described["Author"] == "nas-blockout maintainers"
    assert "Paper, https://arxiv.org/abs/1512.05246" in described.get_all("Project-URL", [])


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel and what it asks for."""

    folder: Path

    def run(self, *words: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
        command = [self.folder / "bin" / words[0], *words[1:]]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def asked_for(described: Message, extras: Iterable[str]) -> dict[str, metadata.Distribution]:
    """All that an installation of the wheel with some extras brings, by name, as it is installed here."""
    ours = described.get_all("Requires-Dist", [])
    found: dict[str, metadata.Distribution] = {}
    seen, queue = set(), [Requirement(f"nas-blockout[{','.join(extras)}]")]
    while queue:
        asked = queue.pop()
        name, wanted = canonicalize_name(asked.name), ("", *sorted(asked.extras))
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name != "nas-blockout":
            found[name] = metadata.distribution(name)
        needs = [Requirement(line) for line in (ours if name == "nas-blockout" else found[name].requires or [])]
        queue += [
            need for need in needs if not need.marker or any(need.marker.evaluate({"extra": each}) for each in wanted)
        ]
    return found


def install(folder: Path, wheel: Path, distributions: Iterable[metadata.Distribution]) -> Installed:
    """Install the wheel beside links to what it asks for: the same files as an index has, without their 2 GB."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in distributions:
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-compile"]
    done = subprocess.run([*pip, "--no-deps", "--no-index", wheel], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Installed(folder)


@pytest.fixture(scope="module")
def library(wheel: Path, described: Message, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("library"), wheel, asked_for(described, []).values())


@pytest.fixture(scope="module")
def services(wheel: Path, described: Message, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("services"), wheel, asked_for(described, ["services"]).values())


def test_the_wheel_alone_brings_the_library_alone(described: Message) -> None:
    absent = {"ray", "mlflow", "optuna", "sqlalchemy", "pydantic", "typer", "onnx", "matplotlib", "pytest"}
    assert absent & asked_for(described, []).keys() == set()
    assert absent - asked_for(described, ["services"]).keys() == {"pytest"}


def test_the_library_works_where_it_is_installed(library: Installed, tmp_path: Path) -> None:
    code = "import nas_blockout, search_spaces; from nas_blockout.data import DataSettings, load; load(DataSettings())"
    done = library.run("python", "-W", "error", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_services_the_command_names_the_extra_to_install(library: Installed, tmp_path: Path) -> None:
    for words in ((), ("--help",), ("run", "quickstart")):
        done = library.run("nas-blockout", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert re.fullmatch(
            r"error: .* needs the extra 'services', .*pip install 'nas-blockout\[services\]'\n", done.stderr
        )


def test_the_services_work_where_they_are_installed(services: Installed, tmp_path: Path) -> None:
    shown = services.run("nas-blockout", "--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Usage: nas-blockout" in shown.stdout
    checked = services.run("nas-blockout", "validate", "quickstart", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


HOSTILE = "raise RuntimeError('a folder of the working directory was imported')"
STUDY = """
schema_version: 1
name: tiny
data: {name: digits, train_samples: 100}
training: {epochs: 1}
budget: {sample_passes: 300}
retrain: {seeds: [0, 1]}
workers: {max_concurrent_trials: 1}  # another process would import the same from the same places
arms:
  dense: {space: [training]}
export: []
"""


@pytest.mark.slow(20)
def test_folders_of_the_same_names_are_not_imported_in_place_of_ours(services: Installed, tmp_path: Path) -> None:
    """Neither by the command nor by Ray's workers, even those that have not loaded ours before they get work."""
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(HOSTILE, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    variables = {"NAS_BLOCKOUT_TRACKING_URI": "none", "RAY_preload_python_modules": "json"}
    done = services.run("nas-blockout", "run", "study.yaml", "--quiet", cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: " in done.stdout
