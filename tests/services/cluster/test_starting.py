"""Ray gives a node thirty seconds to start, and says so by a bare exception."""

from collections.abc import Callable

import pytest

from services.cluster.connection import ClusterError
from services.cluster.trials import _started

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
    _started(start, lambda: calls.append("stop"))
    assert calls == ["start", "stop", "start"]


def test_twice_too_slow_is_an_error_with_what_to_do() -> None:
    start, calls = starting(SLOW, SLOW)
    with pytest.raises(ClusterError, match="too busy"):
        _started(start, lambda: calls.append("stop"))
    assert calls == ["start", "stop", "start", "stop"]


@pytest.mark.parametrize("error", [ConnectionError("no"), Exception("something else")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    start, calls = starting(error)
    with pytest.raises(type(error)):
        _started(start, lambda: calls.append("stop"))
    assert calls == ["start"]
