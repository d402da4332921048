"""What the store refuses, and how the world below it fails."""


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message never holds a password."""


class StoreUnreachable(StoreError):
    """There is no database at the URL, or it has gone away."""


class NotFound(StoreError):
    """Nothing of that name or identity is in the store."""


class StudyConflict(StoreError):
    """A study, or a trial, of that name is in the store with other contents."""


class StudyBusy(StoreError):
    """Another driver runs the study."""


class Taken(StoreError):
    """Another process does what only one may do at a time."""


class StateError(StoreError):
    """What has ended stays as it ended; the message names both states."""


class LeaseLost(StoreError):
    """A worker no longer has the study that it sees through: it was too late, and another may have it."""


class TooMany(StoreError):
    """An owner has as many studies open as may be."""
