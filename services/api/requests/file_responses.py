"""Files as responses: streamed from disk, in ranges if the client asks for some, and never whole in memory."""

import hashlib
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from services.api.errors import RequestError, respond

_REFUSED = frozenset({400, 416})  # a range that is malformed, or beyond the file


class Download(FileResponse):
    """A file, or ranges of it.

    Args:
        path: The file.
        media_type: Its media type.
        held: Closed when the response has ended, such as a copy of a file on shared storage.
        headers: Additional headers; `ETag` is that of the file's version if there is none among them.
    """

    def __init__(self, path: Path, *, media_type: str, held: ExitStack, headers: dict[str, str] | None = None) -> None:
        super().__init__(path, headers=headers, media_type=media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; a range that it does not have is refused in the form of all errors."""
        refused: RequestError | None = None

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _REFUSED:
                size = Path(self.path).stat().st_size
                refused = RequestError(
                    416,
                    "invalid_range",
                    f"Range must be bytes of this file, which has {size}",
                    key="Range",
                    remedy="leave it out to get the whole file",
                    headers={"Content-Range": f"bytes */{size}"},
                )
            if refused is None:
                await send(message)

        try:
            await super().__call__(scope, receive, answer)
            if refused is not None:
                await respond(refused)(scope, receive, send)
        finally:
            await run_in_threadpool(self._held.close)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; that of a version that was read before is remembered."""
    version = path.stat()
    return _sha256(path, (version.st_ino, version.st_size, version.st_mtime_ns, version.st_ctime_ns))


@lru_cache(maxsize=1024)
def _sha256(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
