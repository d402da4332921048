"""Errors about data; each message states the rule, the offending value, and the remedy."""


class DataError(ValueError):
    """Data that cannot be used. Nothing was changed."""


class DataMissing(DataError):
    """Missing files; the message names the command that gets them."""


class DataCorrupt(DataError):
    """A file that is truncated, altered, or of another format than its name suggests."""


class DataUnsuitable(DataError):
    """Intact data that cannot be split or trained on as requested, such as a class without images."""
