"""Health checks of the containers: `python -P -m services.healthcheck WHAT` exits with 0 if healthy, else with 1.

WHAT is a URL that must respond with success, or the path of a file that must have been touched recently. Only the
standard library is imported, since this runs every few seconds in every container.
"""

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

SECONDS = 5.0


def ask(url: str, *, token: str | None = None, seconds: float = SECONDS) -> str | None:
    """Request a URL; return what is wrong, or None.

    Args:
        url: ``http://`` or ``https://``.
        token: Sent as a bearer token.
        seconds: Timeout.
    """
    if not url.startswith(("http://", "https://")):
        return f"{url!r} is neither http:// nor https://"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the scheme is checked above
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            answer.read()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:  # URLError is an OSError; a broken answer may be a ValueError
        return f"{url} does not answer: {getattr(error, 'reason', error)}"
    return None


def fresh(path: Path, *, seconds: float) -> str | None:
    """Check that a file was touched in the last `seconds`; return what is wrong, or None."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None if age <= seconds else f"{path} was last touched {age:.0f} s ago, not within {seconds:.0f} s"


def _token(variable: str) -> str | None:
    """Return the token in an environment variable, or in the file that one with ``_FILE`` added names."""
    path = os.environ.get(f"{variable}_FILE", "").strip()
    return Path(path).read_text(encoding="utf-8").strip() if path else os.environ.get(variable)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one check; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m services.healthcheck", description="Check the health of one service."
    )
    parser.add_argument("what", help="URL, or path of a file, in which {host} is replaced by this machine's name")
    parser.add_argument(
        "--token",
        metavar="VARIABLE",
        help="environment variable with the bearer token to send, or, with _FILE added, the file that has it",
    )
    parser.add_argument("--seconds", type=float, default=None, help="timeout of a URL, or maximum age of a file")
    options = parser.parse_args(arguments)
    if "://" in options.what:
        token = _token(options.token) if options.token else None
        wrong = ask(options.what, token=token, seconds=options.seconds or SECONDS)
    else:
        path = Path(options.what.replace("{host}", os.uname().nodename))
        wrong = fresh(path, seconds=options.seconds or 60.0)
    if wrong is not None:
        sys.stderr.write(wrong + "\n")
    return 0 if wrong is None else 1


if __name__ == "__main__":
    sys.exit(main())
