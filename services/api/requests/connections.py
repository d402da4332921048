"""Connections of the server: a request and its response have deadlines, and idle connections make room for new ones.

uvicorn closes a connection that is idle after a response, but waits without end for the first request, for the rest of
one whose bytes trickle in, and for a client that does not read.
"""

import asyncio
import socket
import struct
import sys
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.api import errors

REQUEST_SECONDS = 15.0  # for head and body: longer than `request_body.SECONDS`, whose error says more
WRITE_SECONDS = 60.0  # for about 64 KiB, the buffer of a connection


@dataclass(slots=True)
class Room:
    """Room for the connections of a server.

    Args:
        most: Number of connections; of more, the one that has waited longest for a request is closed.
        request_seconds: Time in which a request must arrive, from the first connection or byte on.
        write_seconds: Time in which a client must have read what is buffered for it.
        waiting: Connections without a whole request, in the order in which they began to wait.
    """

    most: int
    request_seconds: float = REQUEST_SECONDS
    write_seconds: float = WRITE_SECONDS
    waiting: dict["BoundedProtocol", None] = field(default_factory=dict)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with deadlines.

    Args:
        room: Shared by all connections of the server.
        arguments: Those of `H11Protocol`.
    """

    def __init__(self, room: Room, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._room = room
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request, and make room if there is none."""
        super().connection_made(transport)
        self._watch_request()
        if len(self.connections) > self._room.most and (longest := next(iter(self._room.waiting), None)):
            longest.give_way()

    def give_way(self) -> None:
        """Close the connection at once."""
        self._room.waiting.pop(self, None)
        self._reset()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._room.waiting.pop(self, None)
        self._late, self._stalled = _cancelled(self._late), _cancelled(self._stalled)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; the deadline is that of the whole request."""
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        """Wait for the next request; what is left of the response must be read in time."""
        super().on_response_complete()
        self._watch_request()
        self._watch_writing()

    def pause_writing(self) -> None:
        """Wait until the client has read on, for a limited time."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Go on, since the client has read on."""
        super().resume_writing()
        self._stalled = _cancelled(self._stalled)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP in the form of all errors."""
        # Called where the error is handled, which knows a better status for a head that is too large.
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(errors.RequestError(status, "bad_request", "the request is not valid HTTP/1.1, or too large"))

    def _watch_request(self) -> None:
        receiving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
        if receiving:
            self._room.waiting.setdefault(self)
        else:
            self._room.waiting.pop(self, None)
        # Between two requests uvicorn has a timer of its own, which the first byte of the next one stops.
        if not receiving or self.timeout_keep_alive_task is not None:
            self._late = _cancelled(self._late)
        elif self._late is None:
            self._late = self.loop.call_later(self._room.request_seconds, self._close_late)

    def _close_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the beginning of a request
            seconds = f"{self._room.request_seconds:g} s"
            self._refuse(errors.RequestError(408, "too_slow", f"no whole request within {seconds}", remedy="try again"))
        else:
            self._reset()

    def _refuse(self, error: errors.RequestError) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of another response
            self.transport.abort()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the application still sends is dropped
        headers, body = errors.raw(error)
        head = h11.Response(
            status_code=error.status,
            headers=[*headers, (b"connection", b"close")],
            reason=HTTPStatus(error.status).phrase.encode(),
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()
        self._watch_writing()

    def _watch_writing(self) -> None:
        if self._stalled is None and self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(self._room.write_seconds, self._close_stalled)

    def _close_stalled(self) -> None:
        self._stalled = None
        if self.transport.get_write_buffer_size():
            self._reset()

    def _reset(self) -> None:
        """Close the connection at once, without what the kernel still keeps for a client that does not read."""
        if (connection := self.transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, if there is one; return none in its place."""
    if timer is not None:
        timer.cancel()
    return None
