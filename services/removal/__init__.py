"""The end of studies: what deleted ones leave behind is removed, everywhere, once they can be restored no more."""

from services.removal.caretaker import TidyRound, tending
from services.removal.purge import purge

__all__ = ["TidyRound", "purge", "tending"]
