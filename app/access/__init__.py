"""API keys: what one is, where keys are kept, what a replica knows of them, and how much each may ask for.

A key is `ck_<id>_<secret>`. Only a keyed hash of the secret is stored. HTTP is not known here: `app.api.auth` puts a
key from a request's head to the `Directory`, and a caller's wishes to the `Limiter`.
"""

from app.access.directory import Directory
from app.access.keyring import KeyRefused, Keyring, MadeKey
from app.access.keys import SCOPES, Caller, KeyLimits, KeyRecord, Scope, is_made_key
from app.access.limiter import Limiter, Refusal
from app.access.places import key_stores, pepper_of
from app.access.store import KeyStore, KeysUnavailable

__all__ = [
    "SCOPES",
    "Caller",
    "Directory",
    "KeyLimits",
    "KeyRecord",
    "KeyRefused",
    "KeyStore",
    "Keyring",
    "KeysUnavailable",
    "Limiter",
    "MadeKey",
    "Refusal",
    "Scope",
    "is_made_key",
    "key_stores",
    "pepper_of",
]
