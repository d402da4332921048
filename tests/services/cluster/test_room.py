"""How many trials a cluster can run is known before a study is submitted; its address and its token are explicit."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.cli.main import main
from services.cluster import ClusterError, Resources
from services.cluster.connection import surrounding_cluster, token
from services.cluster.jobs import Jobs, Node, room
from tests.services.tiny import TINY, image_folder


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([], 1, 0, 0),
        ([Node(2, 0)], 1, 0, 2),
        ([Node(2, 0), Node(3, 0)], 2, 0, 2),
        ([Node(1, 0), Node(1, 0)], 2, 0, 0),  # together they have enough, but a trial runs on one of them
        ([Node(8, 2)], 1, 1, 2),
        ([Node(8, 2)], 1, 0.5, 4),
        ([Node(8, 1)], 1, 0.3, 3),
        ([Node(8, 1)], 1, 0.1, 8),
        ([Node(3, 1)], 1, 0.25, 3),
        ([Node(8, 1), Node(8, 1)], 1, 2, 0),
        ([Node(8, 0), Node(2, 4)], 1, 1, 2),
    ],
)
def test_trials_fit_on_single_nodes_and_single_gpus(nodes: list[Node], cpus: int, gpus: float, expected: int) -> None:
    assert room(nodes, cpus=cpus, gpus=gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "gpus", "together", "apart"),
    [
        ([Node(8, 4)], 4, 1, 1),
        ([Node(8, 2), Node(8, 2)], 4, 0, 1),
        ([Node(8, 3), Node(8, 3), Node(8, 3)], 2, 3, 4),
        ([Node(3, 4)], 2, 0, 0),  # each rank needs two CPUs
        ([Node(4, 0), Node(2, 0)], 0, 1, 1),
    ],
)
def test_ranks_of_a_trial_fit_on_one_node_or_on_several(
    nodes: list[Node], gpus: float, together: int, apart: int
) -> None:
    ranks = int(gpus) or 2
    assert room(nodes, cpus=2, gpus=gpus, ranks=ranks) == together
    assert room(nodes, cpus=2, gpus=gpus, ranks=ranks, apart=True) == apart
    described = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    for one_node, expected in ((True, together), (False, apart)):
        assert Resources(cpus=2, gpus=gpus, ranks=ranks, one_node=one_node).fit(described) == bool(expected)


@given(
    nodes=st.lists(st.builds(Node, st.integers(0, 64), st.integers(0, 8)), max_size=5),
    cpus=st.integers(1, 16),
    gpus=st.one_of(st.just(0), st.integers(1, 8), st.integers(2, 10).map(lambda parts: 1 / parts)),
)
def test_room_is_never_more_than_the_whole_cluster_has(nodes: list[Node], cpus: int, gpus: float) -> None:
    found = room(nodes, cpus=cpus, gpus=gpus)
    assert found * cpus <= sum(node.cpus for node in nodes)
    assert found * gpus <= sum(node.gpus for node in nodes) + 1e-6
    assert room([*nodes, Node(cpus, 8)], cpus=cpus, gpus=gpus) > found


@pytest.mark.parametrize("address", ["ray://head:10001", "head:6379", "auto", ""])
def test_jobs_are_submitted_to_a_dashboard_only(address: str) -> None:
    with pytest.raises(ClusterError, match=r"dashboard of a cluster, such as http://127\.0\.0\.1:8265, got"):
        Jobs(address)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN") as caught:
        Jobs("https://me:hunter22@head:8265")
    assert "hunter22" not in str(caught.value)


def test_a_process_belongs_to_a_cluster_only_as_a_job_of_it() -> None:
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": "10.0.0.1:6379"}
    assert surrounding_cluster(job) == "10.0.0.1:6379"
    assert surrounding_cluster({"RAY_ADDRESS": "http://10.0.0.1:8265"}) is None
    assert surrounding_cluster({}) is None


def test_a_job_without_a_home_that_stays_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    data = {"name": "imagefolder", "folder": str(image_folder(tmp_path / "images"))}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "budget": {"sample_passes": 1}}))
    for home in (None, tmp_path / "stays"):
        if home is not None:
            monkeypatch.setenv("NAS_BLOCKOUT_HOME", str(home))
        with pytest.raises(SystemExit) as ended:  # too small a budget for its images, found before it needs the cluster
            main(["run", "study.yaml", "--quiet"])
        assert ended.value.code == 2
        assert ("NAS_BLOCKOUT_HOME is not set" in capsys.readouterr().err) is (home is None)


def test_the_token_is_found_where_ray_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the user\n")
    (tmp_path / "mine").write_text("of the file\n")
    assert token({}) == "of the user"
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "mine")}
    assert token(named) == "of the file"
    assert token({**named, "RAY_AUTH_TOKEN": "itself"}) == "itself"
    assert token({**named, "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH must name the file"):
        token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
