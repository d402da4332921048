"""Requests to an identity provider: all of them within one deadline, each answer within a size, none redirected."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

MOST_BYTES = 1_000_000


class ProviderError(Exception):
    """A provider cannot be reached in time, or has answered what it must not; the message is for the log.

    Args:
        message: What went wrong, without anything secret.
        unreachable: Whether it did not answer at all, so that trying again may help.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class ProviderRequests:
    """Sends requests to one provider.

    Args:
        client: Open client.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def get(self, url: str, *, bearer: str | None = None) -> dict[str, Any]:
        """Return the JSON object at a URL.

        Raises:
            ProviderError: There is none.
        """
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        status, document = await self._send("GET", url, headers=headers)
        if status != httpx.codes.OK:
            raise ProviderError(f"{url} answers with status {status}", unreachable=status >= 500)
        return document

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Send a form; return status and JSON object of the answer.

        Raises:
            ProviderError: The answer is no JSON object.
        """
        return await self._send("POST", url, headers=headers, content=body.encode())

    async def _send(self, method: str, url: str, **options: Any) -> tuple[int, dict[str, Any]]:
        try:
            async with self._client.stream(method, url, **options) as answer:
                content = bytearray()
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise ProviderError(f"{url} answers with more than {MOST_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ProviderError(f"{url} cannot be reached: {type(error).__name__}", unreachable=True) from None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            # A proxy in front of a provider that is down answers with a page.
            broken = answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
            raise ProviderError(f"{url} answers with no JSON, status {answer.status_code}", unreachable=broken)
        return answer.status_code, document


@asynccontextmanager
async def provider_requests(seconds: float, trust: ssl.SSLContext | bool) -> AsyncIterator[ProviderRequests]:
    """Yield what sends requests, of which all together have so many seconds.

    Args:
        seconds: The deadline of everything in the block.
        trust: Certificates that are trusted.

    Raises:
        ProviderError: The time is over.
    """
    # Timeouts of httpx are those of single reads: a provider that sends a byte now and then would never reach them.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(verify=trust, timeout=seconds, headers=headers) as client,
        ):
            yield ProviderRequests(client)
    except TimeoutError:
        raise ProviderError(f"no answer within {seconds:g} s", unreachable=True) from None
