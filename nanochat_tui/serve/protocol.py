"""Deadlines for clients, which uvicorn does not bring.

A client that sends its request a byte a minute, or never reads what it asked for, costs nothing but a connection; a
thousand of them cost the server. So a request must be whole within a time, and what is sent must be read.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat_tui.serve.errors import ApiError, unavailable
from nanochat_tui.serve.settings import Limits

MOST_HEADER_BYTES = 1 << 16
"""Of a request line with its headers."""


class _Connection(h11.Connection):
    """h11's, which also refuses a request that says twice, and differently, where its body ends.

    A proxy that believes the other of the two would take what follows for the next visitor's request (request
    smuggling; RFC 9112, 6.1 and 6.3).
    """

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event. Raises RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding exclude each other")
        return event


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with two clocks per connection: one while a request is coming in, one while a reader stalls.

    The limits come with the class, because uvicorn makes the instances: see `protocol`.
    """

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER, self.config.h11_max_incomplete_event_size or MOST_HEADER_BYTES)
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._set_receiving(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        self._set_receiving(False)
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Look after every piece whether the request is whole."""
        super().data_received(data)
        self._set_receiving(self.conn.their_state in (h11.IDLE, h11.SEND_BODY))

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, if the answer was given before all of this one had come."""
        super().on_response_complete()
        if self.conn.their_state is not h11.SEND_BODY:
            self._set_receiving(False)

    def shutdown(self) -> None:
        """End a connection when the server ends: at once if its request is not whole, which may never be."""
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if not self.transport.is_closing() and not self.flow.write_paused:
                self.transport.write(
                    _raw("503 Service Unavailable", unavailable("the server is being stopped", "stopping"))
                )
            self.transport.close()
        else:
            super().shutdown()

    def _set_receiving(self, on: bool) -> None:
        if on and self._receiving is None and not self.transport.is_closing():
            self._receiving = self.loop.call_later(self.limits.receive_seconds, self._late)
        elif not on and self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _late(self) -> None:
        self._receiving = None
        if self.transport.is_closing():
            return
        heard = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
        if heard and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.flow.write_paused:
            self.transport.write(_late_answer())
        self.transport.close()

    def pause_writing(self) -> None:
        """Begin to wait for the reader."""
        super().pause_writing()
        self._unstall()
        self._stalled = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader has read."""
        super().resume_writing()
        self._unstall()

    def abort_stalled(self) -> None:
        """Cut a connection whose reader has not read what was sent."""
        if self._stalled is not None:
            self.transport.abort()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that still has not read its answer is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with an error object."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            error = ApiError(400, "this is not one request in HTTP/1.1", code="invalid_http")
            self.transport.write(_raw("400 Bad Request", error))
        self.transport.close()


def _late_answer() -> bytes:
    return _raw("408 Request Timeout", ApiError(408, "the request took too long to arrive", code="request_timeout"))


def _raw(status: str, error: ApiError) -> bytes:
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    return head.encode() + b"\r\n\r\n" + body


def protocol(limits: Limits) -> type[DeadlineProtocol]:
    """Return the protocol class with its limits."""
    return type("LimitedProtocol", (DeadlineProtocol,), {"limits": limits})
