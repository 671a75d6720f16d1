"""Where the API listens, as a browser and as a socket see it, and whether that place is free."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time

ANY_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  (recognised, not bound)


class AddressRefused(Exception):
    """The address cannot be listened on; the message names the option that helps."""


def base_url(host: str, port: int) -> str:
    """The URL at which this machine reaches an API that listens on `host`."""
    reachable = ANY_HOSTS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def is_loopback(host: str) -> bool:
    """True when only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def take_port(host: str, port: int, *, wait_s: float = 1.0) -> int:
    """A port on which the API can listen: `port`, or a free one for 0. Waits a moment for a process that is ending.

    Raises AddressRefused.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise AddressRefused(_explain(error, host, port)) from None


def _bind(host: str, port: int) -> int:
    family, kind, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use by another program; choose a free one: --port {_near(host, port)}"
    if error.errno == errno.EACCES:
        return f"Port {port} needs more rights than this user has. Choose one above 1023: --port 8000"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is not an address of this machine. Use one that is: --host 127.0.0.1"
    return f"Cannot listen on {host}:{port} ({error.strerror}). Try others: --host 127.0.0.1 --port 8000"


def _near(host: str, port: int) -> int:
    """The next free port above `port`, to propose."""
    for candidate in range(port + 1, min(port + 50, 65536)):
        try:
            return _bind(host, candidate)
        except OSError:
            continue
    return 0
