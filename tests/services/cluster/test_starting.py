"""Ray gives a node thirty seconds to start, and says so by a bare exception."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cluster.connection import ClusterError, short_folder, started

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
