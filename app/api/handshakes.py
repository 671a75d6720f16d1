"""The last moment of a listener, in which nobody who has connected is lost.

A listener that is closed resets whoever stands in its queue, and there is no closing it and taking the queue in one go:
who connects in between has sent a request that nobody will read. So the listener hears of no new connection any more
before it takes what is there. Its socket drops the packets that ask for one (Linux: a classic BPF filter, socket(7),
`SO_ATTACH_FILTER`), and whoever sent such a packet asks again after a second, as for any packet that is lost: he is
refused then, or finds another listener at the address.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import sys

log = logging.getLogger(__name__)
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_FLAGS, _SYN, _ACK = 13, 0x02, 0x10  # where a TCP header has its flags, and two of them
_WHOLE = 0xFFFFFFFF
_DROP_SYN = (
    (_LOAD_BYTE, 0, 0, _FLAGS),
    (_AND, 0, 0, _SYN | _ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),  # the first packet of a handshake alone: the others are let through
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _WHOLE),
)


def begin_no_more(listener: socket.socket) -> None:
    """Let no handshake begin at `listener`; those under way are finished. Where the platform has no such filter, or
    refuses it, all goes on as it was, with a line in the log."""
    if not sys.platform.startswith("linux"):
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    filter_ = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
    except OSError as error:
        log.info("the listener cannot be told to hear of no new connection", extra={"why": error.strerror})
