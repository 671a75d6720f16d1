"""Check of the object store, where one is set: an object is written, listed, read and deleted."""

from __future__ import annotations

import secrets

from app.cli.checks import Check
from app.settings import Settings
from prompt_store import ObjectStore, StoreUnavailable
from prompt_store.objects import ObjectMissing

_FIX = "look at CHORUS_BLOBS_URL, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"


def check_objects(settings: Settings) -> list[Check]:
    """Nothing where blobs lie in a folder."""
    if settings.blobs_url is None:
        return []
    objects, name = ObjectStore(settings.blobs_url), secrets.token_hex(8)
    try:
        objects.put(f"doctor/{name}", b"x")
        seen = name in objects.names("doctor") and objects.get(f"doctor/{name}", limit=1) == b"x"
        objects.delete(f"doctor/{name}")
        objects.names("quarantine")
    except (StoreUnavailable, ObjectMissing) as error:
        return [Check("object store", "fail", str(error) or "what was written is not there", _FIX)]
    if not seen:
        return [
            Check("object store", "fail", "what was written is not listed at once", "use a store that is consistent")
        ]
    return [Check("object store", "ok", f"{settings.blobs_url} can be written and listed")]
