import io

import pytest

from nas_blockout.interactive import progress_line
from nas_blockout.interactive.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_one_line_that_ends_with_the_last_text(clock):
    stream = Terminal()
    with ProgressLine(stream) as line:
        for number, text in enumerate(["a longer one", "b", "c"]):
            clock[0] += number * 0.09
            line.show(text)
    assert stream.getvalue() == "\ra longer one\rc           \n"


def test_elsewhere_a_line_is_written_every_few_seconds(clock):
    stream = io.StringIO()
    with ProgressLine(stream) as line:
        for text in ("one", "two", "three"):
            line.show(text)
            clock[0] += 3
    assert stream.getvalue() == "one\nthree\n"


def test_nothing_is_written_where_nobody_asks():
    stream = Terminal()
    with ProgressLine(stream, enabled=False) as line:
        line.show("a")
    assert stream.getvalue() == ""


def test_an_error_leaves_the_last_text_on_a_line_of_its_own(clock):
    stream = Terminal()
    line = ProgressLine(stream)
    line.show("a")
    line.__exit__(KeyError, KeyError(), None)
    assert stream.getvalue() == "\ra\n"
