"""A key, its record and its hash.

`ck_<id>_<secret>`: the id is 12, the secret 64 hexadecimal digits. Records hold HMAC-SHA256 of both under the pepper, a
secret of the installation that is kept apart from the records: who reads the records alone can neither use nor guess a
key, nor tell whether one that was found belongs to this installation.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Scope = Literal["generate", "train", "admin"]
SCOPES: tuple[Scope, ...] = ("generate", "train", "admin")
State = Literal["active", "expired", "revoked"]

PREFIX = "ck_"
KEY_ID = r"^[0-9a-f]{12}$"
_KEY = re.compile(r"ck_([0-9a-f]{12})_([0-9a-f]{64})\Z")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyLimits(_Record):
    """What one key may ask for, on all replicas together. None: no limit but those of the service."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000)
    concurrent_jobs: int | None = Field(default=None, ge=0, le=1_000_000)
    total_jobs: int | None = Field(default=None, ge=0, le=1_000_000_000)

    @property
    def any_rate(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    @property
    def any_jobs(self) -> bool:
        return self.concurrent_jobs is not None or self.total_jobs is not None


NO_LIMITS = KeyLimits()


class OldSecret(_Record):
    """The secret before a rotation, valid `until` a time, seconds since 1970."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    until: float


class KeyRecord(_Record):
    """All that is kept of a key. Times are seconds since 1970. A revoked key keeps its record: its id never returns."""

    id: str = Field(pattern=KEY_ID)
    name: str = Field(default="", max_length=80)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    pepper: str = Field(pattern=r"^[0-9a-f]{8}$", description="Which pepper the digests were made with.")
    old: OldSecret | None = None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    limits: KeyLimits = NO_LIMITS

    def state(self, now: float) -> State:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "active"


@dataclass(frozen=True)
class Caller:
    """Who asks. `id` names the key and is the engine's tenant; it is empty where no key is asked for."""

    id: str
    scopes: frozenset[Scope]
    limits: KeyLimits = NO_LIMITS

    def may(self, scope: Scope) -> bool:
        return "admin" in self.scopes or scope in self.scopes


def mint(key_id: str | None = None) -> tuple[str, str]:
    """A new key and its id; with `key_id`, a new secret for that id."""
    key_id = key_id or secrets.token_hex(6)
    return f"{PREFIX}{key_id}_{secrets.token_hex(32)}", key_id


def is_made_key(text: str) -> bool:
    """Whether it has the form of a key made by `chorus keys`."""
    return _KEY.match(text) is not None


def id_of(text: str) -> str:
    """The id in a key, whatever stands there in what is none.

    Cut out by place: a pattern that read the secret's digits would take longer for digits that it has not met lately,
    and callers with the right secret are what a service meets most.
    """
    return text[3:15]


def digest_of(text: str, pepper: bytes) -> str:
    """HMAC-SHA256 of the whole key under the pepper, in hexadecimal digits."""
    return hmac.new(pepper, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def pepper_id(pepper: bytes) -> str:
    """Which pepper it is, without saying what it is."""
    return hmac.new(pepper, b"chorus pepper id", hashlib.sha256).hexdigest()[:8]
