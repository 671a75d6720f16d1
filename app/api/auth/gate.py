"""Who may pass, decided from a request's head alone: the key and its scope, the host name, the origin. Logs no key."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers

from app.access import Caller, Directory
from app.api.auth.account import NOBODY
from app.api.auth.exposure import is_address, is_loopback
from app.api.auth.scopes import Need, needed
from app.api.faults import ForeignOrigin, InsufficientScope, MisdirectedRequest, Unauthorized
from app.errors import StoreDown
from app.settings import Settings

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gatekeeper:
    """Asks for a key beyond loopback always, on loopback as soon as there is one, or may be."""

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self._directory = directory
        self._host = settings.host
        self._always = not is_loopback(settings.host)

    def identify(self, method: str, path: str, headers: Headers) -> Caller:
        """Who calls. Raises Unauthorized, MisdirectedRequest or ForeignOrigin, and StoreDown while nobody can tell."""
        if needed(method, path) == "none":
            return NOBODY
        if self._always or self._directory.unread or self._directory.has_keys:  # in this order: `unread` ends last
            caller = self._caller(headers.getlist("authorization"))
        else:
            caller = NOBODY
            self._check_host(headers.get("host", ""))
        if method not in _SAFE_METHODS:
            _check_origin(headers)
        return caller

    def check_scope(self, caller: Caller, method: str, path: str) -> Need:
        """What the call needs. Raises InsufficientScope, for a path that does not exist, too, unless the key may do
        everything."""
        need = needed(method, path)
        if need != "none" and need != "any" and not caller.may(need):
            raise InsufficientScope(f"this key has not the scope `{need}`", param="authorization")
        return need

    def _caller(self, given: list[str]) -> Caller:
        """One answer for no key, a wrong, an expired and a revoked one, after the same work."""
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        caller = self._directory.authenticate(key.strip())
        if scheme.lower() != "bearer" or caller is None:
            if self._directory.unread:
                raise StoreDown("the keys have not been read yet: the Redis that holds them does not answer")
            raise Unauthorized("send the key as `Authorization: Bearer <key>`", param="authorization")
        return caller

    def _check_host(self, host: str) -> None:
        """Without a key only names that cannot be rebound by somebody's DNS: addresses, localhost, the bound name."""
        name = _host_name(host)
        if name in ("localhost", self._host) or name.endswith(".localhost") or is_address(name):
            return
        raise MisdirectedRequest("without a key this server answers only to an address or localhost", param="host")


def _check_origin(headers: Headers) -> None:
    """A browser says where a page comes from; pages of other origins may not write."""
    origin = headers.get("origin")
    if origin is not None and _place_of(origin) != headers.get("host", "").lower():
        raise ForeignOrigin("web pages of another origin may not write here", param="origin")


def _place_of(origin: str) -> str | None:
    """Its host and port; None where it is no origin."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(host: str) -> str:
    name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
    return name.strip("[]").lower()
