"""Errors about data; each message states the rule, the offending value, and the remedy."""

from collections.abc import Sequence

from nas_blockout.serialization import count_of

MOST_NAMED = 10


class DataError(ValueError):
    """Data that cannot be used. Nothing was changed."""


class DataMissing(DataError):
    """Missing files; the message names the command that gets them."""


class DataCorrupt(DataError):
    """A file that is truncated, altered, or of another format than its name suggests.

    Args:
        message: For people.
        problems: A message for each file, where there are several; else `message` is the only one.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class DataUnsuitable(DataError):
    """Intact data that cannot be split or trained on as requested, such as a class without images."""


def named(names: Sequence[str], *, most: int = 5) -> str:
    """Return the first few of many names in quotes, and the number of the rest.

    Args:
        names: Such as those of classes.
        most: How many are written out.
    """
    shown = ", ".join(f"'{name}'" for name in names[:most])  # repr would escape joiners of some scripts
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def all_corrupt(problems: Sequence[str]) -> DataCorrupt:
    """Return one error for all files that cannot be read; it names the first few and counts the rest.

    Args:
        problems: A message for each file, one or more.
    """
    if len(problems) == 1:
        return DataCorrupt(problems[0])
    named = "".join(f"\n  {problem}" for problem in problems[:MOST_NAMED])
    rest = f"\n  and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return DataCorrupt(f"{count_of(len(problems), 'image')} cannot be read:{named}{rest}", problems=problems)
