"""Lists as they are sent: read once for all who ask the same within half a second, anew after a change made here."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

FRESH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    text: asyncio.Task[str]
    asked: float


class Lists:
    """Answers to who lists studies, by owner and query; used by one event loop, and told of changes by any thread.

    Whoever asks shares only what was asked of the store by the same owner, not before that owner's last change in this
    process, and less than half a second ago; a worker's change, or one in another process, is thus seen that much
    later. An answer is let go when it is that old, so that as many are kept as owners may ask for in this time.
    """

    def __init__(self) -> None:
        self._owners: dict[str, dict[Hashable, _Answer]] = {}

    async def answer(self, owner: str, query: Hashable, write: Callable[[], str]) -> str:
        """Return the answer to a query of an owner.

        Args:
            owner: Who asks, by a token that was checked.
            query: All that the answer depends on but the owner.
            write: Reads the store and returns the answer; called in a thread.

        Raises:
            Exception: What `write` raises, to all who wait for it; who asks next tries again.
        """
        answers, now = self._owners.setdefault(owner, {}), time.monotonic()
        found = answers.get(query)
        if found is None or now - found.asked >= FRESH_SECONDS:
            found = answers[query] = _Answer(asyncio.create_task(run_in_threadpool(write)), now)
            asyncio.get_running_loop().call_later(FRESH_SECONDS, self._let_go, owner, query, found)
        try:
            return await asyncio.shield(found.text)  # whoever hangs up leaves it to the others
        except Exception:
            self._let_go(owner, query, found)
            raise

    def forget(self, owner: str) -> None:
        """Take note that a study of an owner was changed here: what is asked from now on is read anew."""
        self._owners.pop(owner, None)

    def _let_go(self, owner: str, query: Hashable, found: _Answer) -> None:
        answers = self._owners.get(owner, {})
        if answers.get(query) is found:
            del answers[query]
            if not answers:
                self._owners.pop(owner, None)
