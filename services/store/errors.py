"""Errors of the store: what it refuses to do, and failures of the database below it."""

from typing import Literal


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message never contains a password."""


class StoreUnreachable(StoreError):
    """There is no database at the URL, or it does not respond."""


class NotFound(StoreError):
    """The store has nothing of that name or ID."""


class StudyConflict(StoreError):
    """The store has a study or trial of that name with different contents."""


class StudyBusy(StoreError):
    """Another driver is running the study."""


class LockTimeout(StoreError):
    """Another process still holds the lock."""


class StateError(StoreError):
    """The state cannot change that way: a terminal state is final. The message names both states."""


class LeaseLost(StoreError):
    """The worker's lease on a study has expired or been released; another worker may hold it."""


class QuotaExceeded(StoreError):
    """The owner has reached the limit of open studies."""


class TokenLimit(StoreError):
    """The owner has as many valid tokens as an owner may have."""


class SignInRefused(StoreError):
    """Somebody whom the identity provider vouches for may not sign in.

    Args:
        reason: ``taken``: the owner's name belongs to somebody else. ``disabled``: an operator has disabled the person.
        message: The same for people.
    """

    def __init__(self, reason: Literal["taken", "disabled"], message: str) -> None:
        super().__init__(message)
        self.reason = reason
