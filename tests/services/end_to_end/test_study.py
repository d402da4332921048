"""A study from the command to the exported model, as a user runs it: real data, Ray, store, MLflow, report.

What it hands over is then used as strangers do: from image files, in onnxruntime, behind MLflow's server.
"""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from PIL import Image

from nas_blockout.data import DataSettings, load
from services.trial_record import Trial
from tests.services.program import RUNS_HERE, Ended, alone, here, of, store_of
from tests.services.serving import closed_port

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(150), *RUNS_HERE]

SEEDS = [0, 1]
STUDY: dict[str, Any] = {
    "schema_version": 2,
    "name": "whole",
    "data": {"name": "digits", "train_samples": 150},
    "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [16], "normalize_logits": True},
    "training": {"epochs": 6, "batch_size": 15, "learning_rate": 0.01},
    "budget": {"sample_passes": 4800},  # of each arm: two search trials and two retrainings
    "retrain": {"seeds": SEEDS},
    "arms": {
        "dense": {"space": ["training"]},
        "bayesian": {"space": ["training", "branched"], "searcher": "tpe"},
        "confusion": {"confusion": {"branches": 2}},
        "blockout": {
            "method": {
                "name": "blockout", "clusters": 2, "masked": "all", "first_probability": 0.9, "last_probability": 0.9,
            },
            "distillation": {"target_macs": 0.8},
        },
        "placebo-nodes": {"extends": "blockout", "distillation": {"placebo": "nodes"}},
        "pruned": {"pruning": {}, "match": {"arm": "blockout"}},
        "thin": {"match": {"arm": "blockout"}},
    },
    "export": ["dense", "blockout"],
}  # fmt: skip
ARMS = tuple(STUDY["export"])
PICTURES = 60
START_SECONDS = 600
# Programs of strangers, whose Python cannot find our packages; they print the test accuracies of models.
ALONE = {
    "model.onnx": """
import sys, json, numpy, onnxruntime
images, labels = numpy.load("images.npy"), numpy.load("labels.npy")
def classify(path):
    session = onnxruntime.InferenceSession(path)
    logits = numpy.concatenate([session.run(None, {"images": part})[0] for part in numpy.array_split(images, 7)])
    assert "torch" not in sys.modules
    return session.get_modelmeta().custom_metadata_map, logits
""",
    "model.pt2": """
import sys, json, numpy, torch
images, labels = numpy.load("images.npy"), numpy.load("labels.npy")
def classify(path):
    model = torch.export.load(path, extra_files=(inside := {"preprocessing.json": ""})).module()
    with torch.no_grad():
        return inside, torch.cat([model(part) for part in torch.from_numpy(images).tensor_split(7)]).numpy()
""",
}
AND_SAY = """
for path in sys.argv[1:]:
    inside, logits = classify(path)
    names = json.loads(inside["preprocessing.json"])["class_names"]
    print(float(numpy.mean([names[best] == str(label) for best, label in zip(logits.argmax(1), labels, strict=True)])))
assert not {"nas_blockout", "search_spaces", "services"} & {name.split(".")[0] for name in sys.modules}
"""


def program(home: Path, *words: object) -> Ended:
    return here(*words, **of(home, tracking=None))


@dataclass(frozen=True, slots=True)
class Held:
    """The test split as images in [0, 1] and labels, and where pictures of its first images stand."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    pictures: tuple[Path, ...]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "study.yaml").write_text(yaml.safe_dump(STUDY))
    found = alone("run", home / "study.yaml", **of(home, tracking=None))
    assert found.code == 0, found.err[-3000:]
    require_result(home, found.out)
    return home


def require_result(home: Path, out: str) -> None:
    """Require that a terminal ends with the verdict, which two seeds cannot decide, and with the model to ship."""
    shipped = json.loads((home / "runs" / "whole" / "comparison.json").read_text())["recommendation"]["arm"]
    words = " ".join(out.split())
    verdict = words.index(
        "Not shown that learned structure helps: two seeds can show nothing, a verdict needs 3 or more"
    )
    assert verdict < words.index("by mean test accuracy") < words.index(f"Ship {shipped} model")


@pytest.fixture(scope="module")
def comparison(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / "whole" / "comparison.json").read_text())
    return found


def test_every_arm_spends_its_budget_and_is_tested_once_a_seed(home: Path, comparison: dict[str, Any]) -> None:
    assert set(comparison["arms"]) == set(STUDY["arms"])
    for arm in comparison["arms"].values():
        spent = arm["cost"]["search"]["sample_passes"] + arm["cost"]["retrain"]["sample_passes"]
        assert spent == 4800
        assert set(arm["test_accuracy"]["per_seed"]) == {"0", "1"}
    assert comparison["ranking"] is not None
    pairs = [{pair["a"], pair["b"]} for pair in comparison["pairs"]]
    assert all({a, b} in pairs for a, b in combinations(STUDY["arms"], 2))
    assert len(pairs) == len(STUDY["arms"]) * (len(STUDY["arms"]) - 1) / 2
    blockout, pruned, thin = (comparison["arms"][name]["macs_per_seed"] for name in ("blockout", "pruned", "thin"))
    for seed in ("0", "1"):
        assert pruned[seed] <= blockout[seed]
        assert abs(thin[seed] / blockout[seed] - 1) < 0.1


def test_what_the_study_leaves_is_whole(home: Path, comparison: dict[str, Any]) -> None:
    folder = home / "runs" / "whole"
    for name in ("study.yaml", "environment.json", "trials.csv", "comparison.json", "report/index.html"):
        assert (folder / name).stat().st_size > 0
    exported = {"dense", "blockout", comparison["recommendation"]["arm"]}
    assert {path.name for path in (folder / "models").iterdir()} == exported
    assert (folder / comparison["recommendation"]["model"] / "model.pt2").stat().st_size > 0
    rows = (folder / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * len(STUDY["arms"])


def test_the_store_knows_the_hash_of_every_exported_file(home: Path, comparison: dict[str, Any]) -> None:
    with store_of(home) as store:
        exports = store.exports("whole")
    exported = {"dense", "blockout", comparison["recommendation"]["arm"]}
    assert {row.arm: row.verified for row in exports} == dict.fromkeys(exported, True)
    for row in exports:
        files = {path.name: path.read_bytes() for path in Path(row.path).iterdir()}
        assert row.hashes == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        assert "verification.json" in files


def test_running_again_prints_the_result_and_trains_nothing(home: Path) -> None:
    before = (home / "runs" / "whole" / "comparison.json").stat().st_mtime_ns
    found = program(home, "run", home / "study.yaml")
    assert found.code == 0, found.err
    require_result(home, found.out)
    assert (home / "runs" / "whole" / "comparison.json").stat().st_mtime_ns == before
    shown = program(home, "show", "whole", "--json")
    assert shown.code == 0, shown.err
    assert shown.json


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    splits = load(DataSettings(train_samples=STUDY["data"]["train_samples"]))
    part, folder = splits.test(), tmp_path_factory.mktemp("pictures")
    images = splits.preprocessing.undo(part.images.clone()).clamp(0, 1).numpy()
    for number, image in enumerate(images[:PICTURES]):
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(folder / f"{number:03}.png")
    return Held(images, part.labels.numpy(), tuple(sorted(folder.iterdir())))


def handed_over(home: Path, arm: str) -> Trial:
    """The trial whose network an arm handed over; its result has the recorded predictions."""
    comparison = json.loads((home / "runs" / "whole" / "comparison.json").read_text())
    seed = comparison["arms"][arm]["exported_seed"]
    with store_of(home) as store:
        trials = [row for row in store.trials("whole", phase="retrain") if (row.arm, row.seed) == (arm, seed)]
    assert len(trials) == 1
    return trials[0]


@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("arm", ARMS)
def test_pictures_of_the_test_split_are_classified_as_recorded(home: Path, held: Held, arm: str, form: str) -> None:
    model = home / "runs" / "whole" / "models" / arm
    found = program(home, "predict", model, *held.pictures, "--form", form, "--json")
    assert found.code == 0, found.err
    predictions = found.json["predictions"]
    recorded = handed_over(home, arm).result["predictions"]  # type: ignore[index]
    assert len(set(recorded[:PICTURES])) > 5, "it tells classes apart"
    agreed = 0
    for each, label in zip(predictions, recorded[:PICTURES], strict=True):
        best, second = each["classes"][:2]
        agreed += best["name"] == str(label)
        if best["probability"] - second["probability"] > 0.02:  # less than that may be rounding to 256 shades
            assert best["name"] == str(label)
    assert agreed >= 0.95 * PICTURES


@pytest.mark.parametrize("form", ALONE)
def test_each_form_alone_has_the_recorded_test_accuracies(home: Path, held: Held, form: str, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", held.images)
    np.save(tmp_path / "labels.npy", held.labels)
    models = [str(home / "runs" / "whole" / "models" / arm / form) for arm in ARMS]
    command = [sys.executable, "-I", "-W", "ignore", "-c", ALONE[form] + AND_SAY, *models]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    recorded = [handed_over(home, arm).result["test_accuracy"] for arm in ARMS]  # type: ignore[index]
    assert [float(accuracy) for accuracy in said.split()] == pytest.approx(recorded, abs=5e-5)


@contextmanager
def served(home: Path, model: str) -> Iterator[str]:
    """MLflow's server of a model, as the guide starts it; yields its address."""
    port = closed_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{model}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'runs' / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # MLflow starts uvicorn by its name
        "OMP_NUM_THREADS": "1",
    }
    with (home / "served.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (home / "served.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (home / "served.log").read_text()[-3000:]
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def ask(address: str, images: Any) -> Any:
    body = json.dumps({"inputs": images}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def test_mlflow_serves_the_logged_model(home: Path, held: Held) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nas-blockout/whole")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`nas.trial` = 'study'")
    logged = client.get_logged_model(parent.data.tags["nas.model"])
    recorded = handed_over(home, logged.name).result["predictions"]  # type: ignore[index]
    exported = home / "runs" / "whole" / "models" / logged.name  # which is recommended, and so exported by the study
    model = torch.export.load(exported / "model.pt2").module()
    with served(home, logged.model_id) as address:
        answered = torch.tensor(ask(address, held.images.tolist()))
        assert answered.argmax(1).tolist() == recorded
        with torch.no_grad():
            expected = model(torch.from_numpy(held.images))
        torch.testing.assert_close(answered.softmax(1), expected.softmax(1), rtol=0, atol=1e-4)
        (alone,) = ask(address, held.images[:1].tolist())
        torch.testing.assert_close(torch.tensor(alone), answered[0], rtol=1e-4, atol=1e-4)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, held.images[:1, :, :5, :5].tolist())
        with refused.value as error:
            assert error.code == 400
            assert "shape" in error.read().decode().lower()


def test_an_exported_model_with_a_changed_byte_is_refused_until_it_is_exported_again(home: Path) -> None:
    model = home / "runs" / "whole" / "models" / "blockout"
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "weights.safetensors").write_bytes(content)
    refused = program(home, "verify", model)
    assert refused.code == 6
    assert "weights.safetensors" in refused.out + refused.err
    again = program(home, "export", "whole", "blockout", "--batch", "8")
    assert again.code == 0, again.err
    assert json.loads((model / "verification.json").read_text())["batch"] == 8
    found = program(home, "verify", model)
    assert (found.code, found.out) == (0, f"{model}: verified\n"), found.err


def test_a_model_is_cut_to_some_classes(home: Path) -> None:
    found = program(home, "export", "whole", "bayesian", "--classes", "8, 3,5")
    assert found.code == 0, found.err
    folder = home / "runs" / "whole" / "models" / "bayesian-classes-8-3-5"
    assert found.out.startswith(f"{folder}: 3 of 10 classes, ")
    assert program(home, "verify", folder).code == 0
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    whole = program(home, "export", "whole", "bayesian").out.strip()
    given = []
    for each in (folder, Path(whole)):
        model = torch.export.load(each / "model.pt2").module()
        given.append(model(torch.from_numpy(images)).detach())
    torch.testing.assert_close(given[0], given[1][:, [8, 3, 5]], rtol=1e-3, atol=1e-3)
    refused = program(home, "export", "whole", "bayesian", "--classes", "3,eleven")
    assert (refused.code, refused.out) == (2, "")
    assert "no class 'eleven'" in refused.err


def test_mlflow_has_the_study_once(home: Path) -> None:
    found = program(home, "sync", "whole")
    assert found.code == 0, found.err
    with sqlite3.connect(home / "runs" / "mlflow.db") as database:
        runs = database.execute("select name from runs where lifecycle_stage = 'active'").fetchall()
    assert "MLflow, winners: http://127.0.0.1:5000/#/compare-runs?runs=" in found.out
    report = (home / "runs" / "whole" / "report" / "index.html").read_text()
    assert 'href="http://127.0.0.1:5000/#/compare-runs?runs=' in report
    assert len(runs) == 1 + (1 + 4) * len(STUDY["arms"])  # of the study, of its arms, of their trials
    assert len({name for (name,) in runs}) == len(runs)


def test_an_arm_that_diverges_ends_the_study_with_4_and_no_ranking(tmp_path: Path) -> None:
    wild = {"training": {"optimizer": "sgd", "learning_rate": 1e30}}
    study = {
        **STUDY,
        "name": "wild",
        "training": {"epochs": 1},
        "budget": {"sample_passes": 800},
        "arms": {"dense": {}, "wild": wild},
        "export": [],
        "workers": {"max_concurrent_trials": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = here("run", tmp_path / "study.yaml", **of(tmp_path))
    assert found.code == 4, found.err[-3000:]
    document = json.loads((tmp_path / "runs" / "wild" / "comparison.json").read_text())
    assert document["ranking"] is None
    assert "no retrained model in wild" in document["reason"]
    assert document["arms"]["wild"]["failed"] > 0
    assert document["arms"]["dense"]["missing_seeds"] == []
