"""Ending a connection so that its last answer is read (lingering close, RFC 9112 section 9.6), and so that it ends.

A socket closed while bytes of the client wait unread resets the connection, and the reset takes away an answer that the
client has not read yet. So our side ends first; what the client still sends is dropped until it ends its side too.

A transport that is closed while bytes of ours wait to be read waits for its reader, for ever if need be. So whoever
reads nothing for a while is cut off.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

LINGER_S = 5.0
LINGER_BYTES = 16 << 20
STALL_S = 60.0
"""How long the client may read nothing of what is left for it, once its connection is being closed."""


class LingeringTransport:
    """A connection's transport whose `close` does so while `unread()`: while the client has more to send; and does not
    wait for a client who does not read. All else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol, unread: Callable[[], bool]) -> None:
        self._transport = transport
        self._protocol = protocol
        self._unread = unread
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        """End our side once all that was written is out; the connection after `LINGER_S` or `LINGER_BYTES` at most, or
        when this is called again. Nothing is waited for while the client reads nothing for `STALL_S`."""
        if self.is_closing() or not self._unread():
            if not self._transport.is_closing():
                self._await_reader(self._transport.get_write_buffer_size())
            self._transport.close()
            return
        self._lingers = True
        self._transport.set_protocol(_Dropping(self._transport, self._protocol))
        self._transport.write_eof()
        self._transport.resume_reading()

    def cut(self) -> None:
        """End the connection at once and drop what is unread, also what the system holds of it: the client, should it
        read on after all, sees a reset instead of half an answer."""
        wire = self._transport.get_extra_info("socket")
        if wire is not None and not self._transport.is_closing():
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _await_reader(self, left: int) -> None:
        """Look again in `STALL_S` whether the client has read of the `left` bytes; abort if not."""
        if left:
            asyncio.get_running_loop().call_later(STALL_S, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        left = self._transport.get_write_buffer_size()
        if left < before:
            self._await_reader(left)
        else:
            self.cut()


class _Dropping(asyncio.Protocol):
    """Reads what nobody wants, then tells the connection's protocol of its end."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._dropped = 0
        self._deadline = asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
