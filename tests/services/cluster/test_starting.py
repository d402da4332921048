"""Ray gives a node some time to start, and says by a bare exception that it was not enough."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError

from services.cluster.connection import START_VARIABLE, ClusterError, explained, short_folder, start_seconds, started
from services.cluster.trials import _prepare

SLOW = Exception("The current node timed out during startup. This could happen because some of the processes failed.")


def starting(*errors: Exception | None) -> tuple[Callable[[], None], list[str]]:
    """A start that raises one error after the other, and what has been called."""
    left, calls = list(errors), []

    def start() -> None:
        calls.append("start")
        if (error := left.pop(0)) is not None:
            raise error

    return start, calls


def test_a_node_that_was_too_slow_is_started_again() -> None:
    start, calls = starting(SLOW, None)
    started(start, lambda: calls.append("stop"))
    assert calls == ["start", "stop", "start"]


def test_twice_too_slow_is_an_error_with_what_to_do() -> None:
    start, calls = starting(SLOW, SLOW)
    with pytest.raises(ClusterError, match="too busy"):
        started(start, lambda: calls.append("stop"))
    assert calls == ["start", "stop", "start", "stop"]


@pytest.mark.parametrize("error", [ConnectionError("no"), Exception("something else")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    start, calls = starting(error)
    with pytest.raises(type(error)):
        started(start, lambda: calls.append("stop"))
    assert calls == ["start"]


def test_a_loaded_machine_has_longer_to_start_a_node() -> None:
    assert [start_seconds(load, 2) for load in (0.0, 2.0, 5.0, 8.0, 100.0)] == [30, 30, 75, 120, 120]
    assert start_seconds() >= 30


def test_the_user_says_how_long_a_node_may_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != START_VARIABLE}
    monkeypatch.setattr(os, "environ", environment)
    _prepare(tmp_path, new_cluster=True)
    assert int(environment[START_VARIABLE]) >= 30
    environment[START_VARIABLE] = "300"
    _prepare(tmp_path, new_cluster=True)
    assert environment[START_VARIABLE] == "300"
    with pytest.raises(ClusterError, match="within 300 seconds, twice"):
        started(starting(SLOW, SLOW)[0], lambda: None)


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        (None, "run the command again"),
        ("auto", "start one by `ray start --head`, or leave NAS_BLOCKOUT_RAY_ADDRESS empty"),
        ("10.0.0.1:6379", "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN must hold the token"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError("no"), RaySystemError("no"), TimeoutError("no")], ids=repr)
def test_whatever_ray_raises_is_one_error_with_what_to_do(error: Exception, address: str | None, remedy: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(remedy)) as caught, explained(address):
        raise error
    assert (address or "this machine") in str(caught.value)
    with pytest.raises(LookupError), explained(address):
        raise LookupError


def test_a_short_temporary_folder_is_left_to_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # only its length counts
    assert short_folder(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_where_the_temporary_folder_is_too_long_for_sockets_a_user_gets_one_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'t' * 90}")
    found = short_folder(tmp_path)
    assert found == short_folder(tmp_path) == str(tmp_path / f"nas-blockout-{os.getuid()}")
    assert Path(found).stat().st_mode & 0o777 == 0o700
    Path(found).chmod(0o777)
    with pytest.raises(ClusterError, match="others may write to it; set TMPDIR to a folder with a shorter path"):
        short_folder(tmp_path)
    Path(found).rmdir()
    Path(found).symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="set TMPDIR"):
        short_folder(tmp_path)
    with pytest.raises(ClusterError, match="set TMPDIR"):
        short_folder(tmp_path / "missing")
