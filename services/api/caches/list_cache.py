"""Cache of lists of studies: one reading serves equal requests for half a second, or until a change in this process."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

LIST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    text: asyncio.Task[str]
    requested_at: float


class Lists:
    """Lists as JSON, by owner and query; for use in one event loop, except `forget`, which any thread may call.

    A request shares a reading only with requests of the same owner, made after the owner's last change in this process
    and at most `fresh_seconds` ago; changes by a worker or another process appear that much later. An answer is dropped
    at that age, which bounds the size of the cache.

    Args:
        fresh_seconds: Age up to which an answer is reused.
    """

    def __init__(self, *, fresh_seconds: float = LIST_SECONDS) -> None:
        self._fresh_seconds = fresh_seconds
        self._owners: dict[str, dict[Hashable, _Answer]] = {}

    async def answer(self, owner: str, query: Hashable, write: Callable[[], str]) -> str:
        """Return the answer to a query of an owner, cached or read anew.

        Args:
            owner: Owner of the studies, who has been authenticated.
            query: Everything else that the answer depends on.
            write: Reads the store and returns the answer; called in a thread.

        Raises:
            Exception: Whatever `write` raises, in all requests that share it; the next request tries again.
        """
        answers, now = self._owners.setdefault(owner, {}), time.monotonic()
        answer = answers.get(query)
        if answer is None or now - answer.requested_at >= self._fresh_seconds:
            # The task itself is kept, not its result: requests that arrive while it reads share the reading.
            answer = answers[query] = _Answer(asyncio.create_task(run_in_threadpool(write)), now)
            asyncio.get_running_loop().call_later(self._fresh_seconds, self._drop, owner, query, answer)
        try:
            return await asyncio.shield(answer.text)  # a client that disconnects must not cancel it for the others
        except Exception:
            self._drop(owner, query, answer)
            raise

    def forget(self, owner: str) -> None:
        """Drop all answers of an owner, one of whose studies has been changed."""
        self._owners.pop(owner, None)  # one operation on a dict, which threads may do without a lock

    def _drop(self, owner: str, query: Hashable, answer: _Answer) -> None:
        answers = self._owners.get(owner, {})
        if answers.get(query) is answer:  # not a newer one
            del answers[query]
            if not answers:
                self._owners.pop(owner, None)
