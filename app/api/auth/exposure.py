"""Whether a service may listen where its settings say. Asked before anything listens."""

from __future__ import annotations

import ipaddress

from app.access import is_made_key
from app.api.faults import UnsafeExposure
from app.settings import MIN_KEY_CHARS, Settings


def check_exposure(settings: Settings, *, has_keys: bool = False) -> None:
    """Raises UnsafeExposure for an address beyond this machine without a key. `has_keys`: some were made."""
    set_one = settings.api_key is not None and not is_made_key(settings.api_key)
    if not set_one and not has_keys and not is_loopback(settings.host):
        raise UnsafeExposure(
            f"refusing to listen on {settings.host} without a key: anyone who reaches it could use and train. "
            "Make one (chorus keys create --scope admin), set CHORUS_API_KEY, or listen on 127.0.0.1",
            param="host",
        )
    if set_one and len(settings.api_key or "") < MIN_KEY_CHARS:
        raise UnsafeExposure(f"CHORUS_API_KEY is too short: use {MIN_KEY_CHARS} characters or more", param="api_key")


def is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
