"""Studies run as jobs on a real Ray cluster of two nodes, with storage that speaks S3 between them."""

import http.server
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from services.cluster import ClusterError
from services.cluster.jobs import Jobs, job_id
from services.study_config.resolution import study_of
from services.study_config.resolved_study import Study
from tests.plugin_packages import NETS
from tests.services.program import COMMAND, PATIENCE, RUNS_HERE, Ended, alone, here
from tests.services.serving import answering
from tests.services.tiny import image_folder
from tests.services.topology.studies import TINY, home_of

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow(200), *RUNS_HERE]

SUBMIT_BY_RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "job", "submit"]
STUDY: dict[str, Any] = {**TINY, "name": "on-a-cluster", "workers": {"max_concurrent_trials": 2}}


def resolved(**changes: Any) -> Study:
    return study_of({**STUDY, **changes}, source="x")


def command(cluster: Any, *words: object, **changes: str) -> Ended:
    return here(*words, **{**cluster.own, **changes})


def scores(comparison: dict[str, Any]) -> dict[str, Any]:
    """What a comparison has that is the same wherever the study ran."""
    return {
        name: {key: arm[key] for key in ("validation_accuracy", "test_accuracy", "macs", "parameters")}
        for name, arm in comparison["arms"].items()
    }


def stored(name: str) -> dict[str, Any]:
    found = boto3.client("s3").get_object(Bucket="shared", Key=f"studies/{name}/comparison.json")
    document: dict[str, Any] = json.loads(found["Body"].read())
    return document


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The comparison of the study, run here without a cluster."""
    found = (home_of(TINY, tmp_path_factory) / "runs" / "alone" / "comparison.json").read_text()
    document: dict[str, Any] = json.loads(found)
    return document


@pytest.fixture(scope="module")
def by_ray(
    ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """The file of the study `plain`, and `ray job submit`, which has begun to run it beside what else is submitted."""
    path = tmp_path_factory.mktemp("by-ray") / "plain.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "name": "plain"}))
    words = [
        "--address",
        ray_cluster.address,
        "--working-dir",
        str(path.parent),
        "--",
        "nas-blockout",
        "run",
        path.name,
    ]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options = {"env": ray_cluster.environment, "cwd": ray_cluster.folder, **streams}
    with subprocess.Popen([*SUBMIT_BY_RAY, *words], **options) as process:
        yield path, process
        process.kill()


def test_a_submitted_study_ends_as_a_local_one_and_is_one_job(
    ray_cluster: Any, by_ray: Any, local: dict[str, Any]
) -> None:
    (ray_cluster.folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    words = ("submit", ray_cluster.folder / "study.yaml", "--address", ray_cluster.address)
    ended = command(ray_cluster, *words)
    study, jobs, out = resolved(), ray_cluster.jobs(), ended.out
    assert ended.code == 0, ended.err[-3000:]
    assert f"job {job_id(study)}, study on-a-cluster, configuration {study.hash}, at {ray_cluster.address}" in out
    assert "copying the results to s3://shared/studies/on-a-cluster" in out  # the log of the job
    assert scores(stored("on-a-cluster")) == scores(local)

    job = jobs.job(job_id(study))
    assert (job.state, job.exit_code) == ("succeeded", 0)
    assert job.metadata["study"] == "on-a-cluster"
    assert job.metadata["config_hash"] == study.hash
    details = json.dumps(jobs._client()._do_request("GET", f"/api/jobs/{job.id}").json())
    for secret in (ray_cluster.token, "kept-from-everyone", "NAS_BLOCKOUT"):
        assert secret not in details

    ended = command(ray_cluster, *words, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["job"] == job_id(study)
    assert "was already submitted; state: succeeded" in ended.err
    assert jobs.job(job_id(study, 1)) is None


def test_code_in_files_travels_with_the_study_to_every_node(ray_cluster: Any, tmp_path: Path) -> None:
    """Trials run on both nodes, which unpack the job in folders of their own; a factory and a plug-in in one file."""
    (tmp_path / "mine.py").write_text(
        f"{NETS}\ndef small(num_classes):\n    return Net(NetSettings(), (1, 8, 8), num_classes)\n"
    )
    arms = {
        "plugin": {"backbone": {"name": "mine.py:Net", "width": 4}},
        "factory": {"backbone": {"name": "module", "factory": "mine.py:small"}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "name": "own-code", "arms": arms, "backbone": {}, "export": ["plugin"]}))
    ended = command(ray_cluster, "submit", path, "--address", ray_cluster.address)
    assert ended.code == 0, ended.out[-3000:] + ended.err[-3000:]
    assert "mine.py" in ended.out
    assert {name for name, arm in stored("own-code")["arms"].items() if arm["test_accuracy"]} == set(arms)


def test_ray_itself_submits_a_folder_and_another_machine_finds_the_results(
    ray_cluster: Any, by_ray: tuple[Path, "subprocess.Popen[str]"], local: dict[str, Any], tmp_path: Path
) -> None:
    path, process = by_ray
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said[-6000:]
    assert scores(stored("plain")) == scores(local)
    store = f"sqlite:///{ray_cluster.home / 'runs' / 'nas_blockout.db'}"
    elsewhere = {"NAS_BLOCKOUT_HOME": str(tmp_path / "elsewhere"), "NAS_BLOCKOUT_STORE_URL": store}
    ended = command(ray_cluster, "run", path, "--json", **elsewhere)
    assert ended.code == 0, ended.err[-3000:]
    *events, last = map(json.loads, ended.out.splitlines())
    assert (last["event"], {event["event"] for event in events} - {"progress"}) == ("result", set())
    assert scores(last["comparison"]) == scores(local)
    assert (tmp_path / "elsewhere" / "runs" / "plain" / "report" / "index.html").stat().st_size > 0


def test_the_exit_code_is_that_of_the_job_and_a_failed_job_is_tried_again(ray_cluster: Any) -> None:
    # How many images a folder has is only known where the study runs, and so is whether its budget suffices.
    data = {"name": "imagefolder", "folder": str(image_folder(ray_cluster.folder / "images"))}
    small = {**STUDY, "name": "too-small", "data": data, "budget": {"sample_passes": 1}}
    (ray_cluster.folder / "small.yaml").write_text(yaml.safe_dump(small))
    words = ("submit", ray_cluster.folder / "small.yaml", "--address", ray_cluster.address)
    ended = command(ray_cluster, *words)
    study = study_of(small, source="x")
    assert ended.code == 2, ended.err
    assert "budget.sample_passes: must be at least" in ended.out
    assert f"{job_id(study)} ended with exit code 2" in ended.err
    ended = command(ray_cluster, *words, "--no-wait")
    assert ended.code == 0, ended.err
    assert f"{job_id(study)} ended with exit code 2; a new attempt resumes the study" in ended.err
    assert f"job {job_id(study, 1)}, study too-small" in ended.out


def test_who_stops_following_leaves_the_job_alone(ray_cluster: Any) -> None:
    long = {**STUDY, "name": "long", "training": {"epochs": 2000}, "budget": {"sample_passes": 2_680_000}}
    (ray_cluster.folder / "long.yaml").write_text(yaml.safe_dump(long))
    words = [*COMMAND, "submit", "long.yaml", "--address", ray_cluster.address]
    environment, jobs, name = ray_cluster.environment, ray_cluster.jobs(), job_id(study_of(long, source="x"))
    with (ray_cluster.folder / "followed").open("w+") as out:
        process = subprocess.Popen(words, env=environment, cwd=ray_cluster.folder, stdout=out, stderr=subprocess.STDOUT)
        until(lambda: "Running entrypoint" in (ray_cluster.folder / "followed").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
    told = (ray_cluster.folder / "followed").read_text()
    assert "the job keeps running; run the same command again to follow it" in told
    assert f"`ray job stop --address {jobs.address} {name}` to stop it" in told
    assert "Traceback" not in told
    assert jobs.job(name).living
    assert jobs.submit(study_of(long, source="x")).id == name
    jobs.stop(name)
    until(lambda: not jobs.job(name).living)
    assert jobs.job(name).state == "stopped"
    jobs.stop(name)
    jobs.stop("nothing")


@pytest.mark.parametrize(
    ("workers", "needs"), [({"cpus": 2}, "2 CPUs and 0 GPUs"), ({"gpus": 0.5}, "1 CPU and 0.5 GPUs")]
)
def test_a_study_that_is_too_large_is_refused_with_what_there_is(
    ray_cluster: Any, workers: dict[str, Any], needs: str
) -> None:
    study, jobs = resolved(name="large", workers=workers), ray_cluster.jobs()
    told = f"one trial of study 'large' needs {needs} on one node, the cluster has 2 nodes of 1 CPU and 0 GPUs; lower"
    with pytest.raises(ClusterError, match=told):
        jobs.submit(study)
    assert jobs.job(job_id(study)) is None
    assert jobs.capacity() == {"CPU": 2, "GPU": 0}
    assert jobs.room(resolved()) == 2


def test_a_wrong_token_a_closed_port_and_another_server_are_told_apart(
    ray_cluster: Any, no_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, told in ((no_ray, "did not answer as one"), ("http://127.0.0.1:1", "cannot be reached at")):
        with pytest.raises(ClusterError, match=told):
            Jobs(address).capacity()
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # which Ray would prefer to what it is told
    assert Jobs(ray_cluster.address).capacity()["CPU"] == 2
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(ray_cluster.folder))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(ClusterError, match="does not accept our token; set RAY_AUTH_TOKEN") as caught:
        Jobs(ray_cluster.address).capacity()
    assert "ffff" not in str(caught.value)
    known = {**ray_cluster.environment, "NAS_BLOCKOUT_JOBS_ADDRESS": ray_cluster.address}
    ended = here("submit", "quickstart", **known)
    assert (ended.code, ended.err.count("\n")) == (5, 1), ended.err
    del known["RAY_AUTH_TOKEN_PATH"]
    ended = alone("submit", "quickstart", **{**known, "RAY_AUTH_TOKEN": ""})  # this process keeps what Ray once found
    assert ended.code == 5, ended.err
    assert "does not accept our token; set RAY_AUTH_TOKEN" in ended.err.splitlines()[-1]


def test_a_study_joins_no_cluster_that_it_is_not_told_of(ray_cluster: Any, tmp_path: Path) -> None:
    def drivers() -> int:
        return len(ray_cluster.jobs()._client()._do_request("GET", "/api/jobs/").json())

    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**TINY, "name": "apart", "arms": {"dense": {}}}))
    here_alone = {**ray_cluster.own, "NAS_BLOCKOUT_HOME": str(tmp_path), "NAS_BLOCKOUT_ARTIFACTS": ""}
    before = drivers()
    ended = alone("run", tmp_path / "study.yaml", **here_alone, RAY_ADDRESS=ray_cluster.gcs)
    assert ended.code == 0, ended.err
    assert drivers() == before


@pytest.fixture
def no_ray() -> Iterator[str]:
    """The address of a web server that knows nothing of Ray."""

    class Missing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

    with answering(Missing) as found:
        yield found


def until(condition: Any, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
