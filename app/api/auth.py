"""Who may call: the bearer key, the host name and the origin. Compares in constant time; logs no key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from app.api.faults import ForeignOrigin, MisdirectedRequest, Unauthorized, UnsafeExposure
from app.settings import Settings

OPEN_PATHS = frozenset({"/livez", "/readyz"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_exposure(settings: Settings) -> None:
    """Raises UnsafeExposure for an address beyond this machine without a key."""
    if settings.api_key is None and not _is_loopback(settings.host):
        raise UnsafeExposure(
            f"refusing to listen on {settings.host} without a key: anyone who reaches it could use and train. "
            "Set CHORUS_API_KEY, or listen on 127.0.0.1",
            param="host",
        )
    if settings.api_key is not None and len(settings.api_key) < 16:
        raise UnsafeExposure("CHORUS_API_KEY is too short: use 16 characters or more", param="api_key")


class Gatekeeper:
    """Decides from a request's head alone, before its body is read."""

    def __init__(self, settings: Settings) -> None:
        self._key = None if settings.api_key is None else _digest(settings.api_key)
        self._host = settings.host

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises Unauthorized, MisdirectedRequest or ForeignOrigin."""
        if path in OPEN_PATHS:
            return
        if self._key is not None:
            self._check_key(headers.getlist("authorization"))
        else:
            self._check_host(headers.get("host", ""))
        if method not in _SAFE_METHODS:
            _check_origin(headers)

    def _check_key(self, given: list[str]) -> None:
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        right = hmac.compare_digest(_digest(key.strip()), self._key or b"")
        if scheme.lower() != "bearer" or not right:
            raise Unauthorized("send the key as `Authorization: Bearer <key>`", param="authorization")

    def _check_host(self, host: str) -> None:
        """Without a key only names that cannot be rebound by somebody's DNS: addresses, localhost, the bound name."""
        name = _host_name(host)
        if name in ("localhost", self._host) or name.endswith(".localhost") or _is_address(name):
            return
        raise MisdirectedRequest(
            "without CHORUS_API_KEY this server answers only to an address or localhost", param="host"
        )


def _check_origin(headers: Headers) -> None:
    """A browser says where a page comes from; pages of other origins may not write."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise ForeignOrigin("web pages of another origin may not write here", param="origin")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _host_name(host: str) -> str:
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    return name.strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
