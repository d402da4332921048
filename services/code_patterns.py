"""Patterns by which an operator allows code of others: one rule for factories of networks and for plug-ins."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from nas_blockout.plugins.named_code import file_of

# By variable: the form of a pattern, and the form in words.
_FORMS = {
    "FACTORIES": (
        r"[\w.*?]+:[\w*?]+",
        "patterns such as torchvision.models:*, separated by commas, each with a module and a name",
    ),
    "PLUGINS": (
        r"[\w.*?-]+(:[\w*?]+)?",
        "names and patterns such as small_net or our_nets.*:*, separated by commas",
    ),
}


def read_patterns(text: str, variable: str) -> tuple[str, ...]:
    """Return the patterns of a variable.

    Args:
        text: Its value.
        variable: ``FACTORIES`` or ``PLUGINS``.

    Raises:
        ValueError: One has another form; the message says what they must be.
    """
    form, rule = _FORMS[variable]
    patterns = tuple(part.strip() for part in text.split(",") if part.strip())
    for pattern in patterns:
        if re.fullmatch(form, pattern) is None:
            raise ValueError(f"{rule} (a * stands for any of them), got {pattern!r}")
    return patterns


def allows(patterns: Sequence[str], code: str) -> bool:
    """Return whether one of the patterns is that of a name as a whole; never of code in a file.

    Args:
        patterns: As of `read_patterns`.
        code: ``package.module:name``, or the name of a plug-in.
    """
    return file_of(code) is None and any(fnmatchcase(code, pattern) for pattern in patterns)
