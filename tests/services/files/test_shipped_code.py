"""Code in files that travels with a submitted study: by its content, with what it imports, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cluster.jobs import job_id
from services.files import shipped_code
from services.files.shipped_code import PREFIX, Shipment, shipment_of
from services.study_config.errors import StudyError
from services.study_config.overrides import read_resolved
from services.study_config.resolved_study import Study
from tests.plugin_packages import NETS
from tests.services.tiny import TINY

EXAMPLE = Path(__file__).parents[3] / "docs" / "guides" / "examples" / "plugin" / "src" / "example_plugin"
WITH_HELP = "from width_of import WIDTH\n" + NETS


def study(folder: Path, name: str = "mine.py:Net", **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, "backbone": {"name": name}, "arms": {"own": {}}, **changes}))
    return read_resolved(str(path))[0]


def package_of(shipment: Shipment) -> str:
    (package,) = {path.partition("/")[0] for path in shipment.files}
    return package


def test_without_code_in_files_a_study_is_sent_as_it_is(tmp_path: Path) -> None:
    plain = study(tmp_path, "convnet")
    sent = shipment_of(plain)
    assert (sent.document, sent.files, sent.hash) == (plain.to_json(), {}, plain.hash)
    assert job_id(plain, 1, sent) == job_id(plain, 1)


def test_code_becomes_a_package_with_the_modules_that_it_imports_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WITH_HELP)
    (tmp_path / "width_of.py").write_text("WIDTH = 3\n")
    (tmp_path / "private.py").write_text("PASSWORD = 'x'\n")
    found = study(tmp_path)
    sent = shipment_of(found)
    package = package_of(sent)
    assert package.startswith(PREFIX)
    assert {path.partition("/")[2] for path in sent.files} == {"__init__.py", "mine.py", "width_of.py"}
    assert sent.document["arms"]["own"]["experiment"]["backbone"]["name"] == f"{package}.mine:Net"
    assert str(tmp_path) not in yaml.safe_dump(sent.document)
    assert job_id(found, 0, sent) != job_id(found, 0)


def test_losses_augmentations_and_searchers_in_files_travel_too(tmp_path: Path) -> None:
    for name in ("focal_loss", "exposure", "one_plus_one"):
        (tmp_path / f"{name}.py").write_text((EXAMPLE / f"{name}.py").read_text())
    changes = {
        "data": {**TINY["data"], "augment": "exposure.py:EXPOSURE"},
        "training": {**TINY["training"], "loss": "focal_loss.py:FOCAL"},
        "arms": {"own": {"space": ["training"], "searcher": "one_plus_one.py:ONE_PLUS_ONE"}},
    }
    sent = shipment_of(study(tmp_path, "convnet", **changes))
    assert {path.partition("/")[2] for path in sent.files} == {
        "__init__.py", "exposure.py", "focal_loss.py", "one_plus_one.py",
    }  # fmt: skip
    assert str(tmp_path) not in yaml.safe_dump(sent.document)


def test_other_content_is_another_study_and_the_folder_does_not_matter(tmp_path: Path) -> None:
    found = []
    for name, text in (("a", NETS), ("b", NETS), ("c", NETS + "\n# changed\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(text)
        found.append(shipment_of(study(tmp_path / name)))
    assert found[0] == found[1]
    assert found[0].hash == found[1].hash != found[2].hash


def test_where_the_files_are_imported_from_the_study_is_read_as_it_was_sent(tmp_path: Path) -> None:
    """In a new process, as that of a job: with the folder on its path, and without the files that were named."""
    (tmp_path / "mine.py").write_text(WITH_HELP)
    (tmp_path / "width_of.py").write_text("WIDTH = 3\n")
    sent = shipment_of(study(tmp_path))
    job = tmp_path / "job"
    for path, text in sent.files.items():
        (job / path).parent.mkdir(parents=True, exist_ok=True)
        (job / path).write_bytes(text)
    (job / "study.yaml").write_text(yaml.safe_dump(dict(sent.document)))
    (tmp_path / "mine.py").unlink()
    (tmp_path / "width_of.py").unlink()
    program = "from services.study_config.overrides import read_resolved; print(read_resolved('study.yaml')[0].hash)"
    paths = os.pathsep.join([str(job), str(Path(__file__).resolve().parents[3])])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=job, env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == sent.hash, done.stderr


def test_two_files_of_one_name_unfit_names_and_much_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(NETS)
    arms = {"a": {"backbone": {"name": "a/mine.py:Net"}}, "b": {"backbone": {"name": "b/mine.py:Net"}}}
    with pytest.raises(StudyError, match=r"got two of one name: .*/mine\.py and .*/mine\.py"):
        shipment_of(study(tmp_path, "convnet", arms=arms))
    (tmp_path / "my-net.py").write_text(NETS)
    with pytest.raises(StudyError, match=r"my-net\.py; name it as Python names modules"):
        shipment_of(study(tmp_path, "my-net.py:Net"))
    monkeypatch.setattr(shipped_code, "MOST_BYTES", 10)
    with pytest.raises(StudyError, match=r"at most 10 bytes, got [\d,]+ in mine\.py; install it as a package"):
        shipment_of(study(tmp_path, "a/mine.py:Net"))
