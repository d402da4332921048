"""What can be wrong with data: each error states the rule, the value that breaks it, and what to do."""


class DataError(ValueError):
    """Data that cannot be used. Nothing was changed."""


class DataMissing(DataError):
    """Files that are not there; the message has the one command that gets them."""


class DataCorrupt(DataError):
    """A file that is truncated, altered, or not what its name says."""


class DataUnsuitable(DataError):
    """Data that is whole but cannot be split or trained on as asked, such as a class without images."""
