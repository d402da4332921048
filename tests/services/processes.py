"""Other Python processes that run a piece of code, with its arguments in ``sys.argv[1:]``."""

import subprocess
import sys


def process(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a process, whose input and output are pipes."""
    # What libraries warn of at import would only fill the log of the tests.
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *arguments], stdin=-1, stdout=-1, text=True)


def outputs_at_once(code: str, *arguments: str, number: int) -> list[str]:
    """Start processes that print ``ready`` and wait for a line, let all of them go on at once, and return their output.

    Every process must end with 0.
    """
    processes = [process(code, *arguments) for _ in range(number)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    printed = [each.communicate(timeout=120)[0] for each in processes]
    assert [each.returncode for each in processes] == [0] * number
    return printed
