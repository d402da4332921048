"""The example of a plug-in is installed, keeps the laws by its own tests, and is searched, trained and recorded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nas_blockout.experiment import Experiment
from services.cluster.tasks import Report, Task
from services.cluster.worker import Worker
from services.search.scheduler import Scheduler
from services.study_config.overrides import read_resolved
from services.study_config.resolved_study import Study, parse_resolved

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "guides" / "examples" / "plugin"


def installed(folder: Path) -> tuple[Path, Path]:
    """Install a copy of the example without an index; return the copy, and where it was installed."""
    source, target = folder / "plugin", folder / "site"
    shutil.copytree(EXAMPLE, source)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return source, target


def trained(study: Study, folder: Path) -> dict[str, Experiment]:
    """Train the first proposal of every arm as a worker does; return it by arm."""
    scheduler = Scheduler(study, shape=(1, 8, 8), classes=4, images=100)
    worker, proposed = Worker(), dict[str, Experiment]()
    while len(proposed) < len(study.arms):
        trial = scheduler.next()
        assert trial is not None
        scheduler.update(trial)
        if trial.arm in proposed:
            continue
        proposed[trial.arm] = trial.config
        worker.start(Task(len(proposed), trial.config.to_json(), False, str(folder / f"{len(proposed)}.pt"), None))
        report = Report.from_text(worker.step().to_text())
        while not report.done:
            report = Report.from_text(worker.step().to_text())
        assert report.failure is None, report.failure
    return proposed


@pytest.mark.slow(30)
def test_the_example_is_installed_tested_searched_trained_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = installed(tmp_path)
    path = os.pathsep.join([str(target), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    own = subprocess.run(command, cwd=source, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert own.returncode == 0, own.stdout
    monkeypatch.syspath_prepend(target)
    study, _ = read_resolved(str(source / "study.yaml"))
    proposed = trained(study, tmp_path)
    assert 0.05 <= proposed["noise"].method.amplitude <= 0.8
    assert proposed["noise"].backbone.width == 4
    assert proposed["noise"].training.loss_options.to_json() == {"gamma": 1.0}
    here = {"distribution": "nas-blockout-example-plugin", "version": "0.1.0"}
    document = study.to_json()
    assert study.data.augment_options.to_json() == {"stops": 1.0}
    assert document["plugins"] == {
        "augmentations": {"exposure": {"place": "example_plugin.exposure:EXPOSURE", **here}},
        "backbones": {"small_net": {"place": "example_plugin.small_net:SmallNet", **here}},
        "losses": {"focal": {"place": "example_plugin.focal_loss:FOCAL", **here}},
        "methods": {"uniform_noise": {"place": "example_plugin.uniform_noise:UNIFORM_NOISE", **here}},
        "pruners": {"far_behind": {"place": "example_plugin.far_behind:FAR_BEHIND", **here}},
        "searchers": {"one_plus_one": {"place": "example_plugin.one_plus_one:ONE_PLUS_ONE", **here}},
        "sources": {"stripes": {"place": "example_plugin.stripes:STRIPES", **here}},
        "spaces": {"noise_amplitude": {"place": "example_plugin.noise_space:noise_amplitude", **here}},
    }
    assert parse_resolved(document).hash == study.hash
