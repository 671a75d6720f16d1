"""Checks of the keys: can they be read, does one of them open anything, may the service listen where it is told to?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from app.access import KeyRecord, KeysUnavailable, is_made_key, key_stores, pepper_of
from app.access.keys import pepper_id
from app.cli.checks import Check, human_days
from app.settings import MIN_KEY_CHARS, Settings
from app.supervisor.address import is_loopback
from app.supervisor.embedded import running_url, server_folder

SOON_S = 7 * 86_400.0
_MAKE = "chorus keys create --scope admin"


def check_keys(settings: Settings, *, now: float | None = None) -> list[Check]:
    """One check of the keys as a whole, and one for each place or file that deserves a word."""
    if settings.api_key is not None and not is_made_key(settings.api_key) and len(settings.api_key) < MIN_KEY_CHARS:
        fix = f"CHORUS_API_KEY=$(openssl rand -hex 32) has {MIN_KEY_CHARS} characters or more"
        return [Check("keys", "fail", "CHORUS_API_KEY is too short", fix)]
    found, problems = _read(settings)
    if any(problem.state == "fail" for problem in problems):
        return problems
    return [_judge(settings, found, time.time() if now is None else now), *problems, *_check_mode(settings)]


def _read(settings: Settings) -> tuple[list[KeyRecord], list[Check]]:
    """The records of every place that answers. An unreadable file stops a start, a Redis that is away does not."""
    records: list[KeyRecord] = []
    problems: list[Check] = []
    for store in key_stores(settings, running_url(server_folder(settings.data_dir))):
        try:
            records += store.load().values()
        except KeysUnavailable as error:
            in_file = store.name == "file"
            fix = "put back a copy of it, or name another: CHORUS_KEYS_FILE" if in_file else "see the check of redis"
            problems.append(Check(f"keys: {store.name}", "fail" if in_file else "warn", str(error), fix))
        finally:
            store.close()
    return records, problems


def _judge(settings: Settings, records: Sequence[KeyRecord], now: float) -> Check:
    if settings.api_key is not None and not is_made_key(settings.api_key):
        return Check("keys", "ok", f"CHORUS_API_KEY opens everything, {_count(records, now)} made")
    if not records:
        if is_loopback(settings.host):
            return Check("keys", "ok", f"none: whoever is on this machine may use {settings.host}")
        return Check("keys", "fail", f"none, and {settings.host} is reached by others", f"{_MAKE}, or --host 127.0.0.1")
    active = [record for record in records if record.state(now) == "active"]
    if not active:
        ways = ", ".join(sorted({record.state(now) for record in records}))
        return Check("keys", "fail", f"all {len(records)} are {ways}: nobody may call", _MAKE)
    try:
        pepper = pepper_of(settings).read()
    except KeysUnavailable as error:
        return Check("keys", "fail", str(error), "put back a copy of the pepper, or set CHORUS_KEY_PEPPER")
    if pepper is None or not any(record.pepper == pepper_id(pepper) for record in active):
        fix = "put back the pepper they were made with: DATA/keys/pepper or CHORUS_KEY_PEPPER"
        return Check("keys", "fail", f"{_count(records, now)}, hashed under a pepper that is not here", fix)
    return _check_ends(active, records, now)


def _check_ends(active: Sequence[KeyRecord], records: Sequence[KeyRecord], now: float) -> Check:
    """Whether somebody may still call next week."""
    lasting = [record for record in active if record.expires_at is None or record.expires_at - now > SOON_S]
    if lasting:
        return Check("keys", "ok", _count(records, now))
    last = max(active, key=lambda record: record.expires_at or 0.0)
    left = human_days((last.expires_at or now) - now)
    return Check("keys", "warn", f"{_count(records, now)}; the last one ends in {left}", _MAKE)


def _check_mode(settings: Settings) -> list[Check]:
    """The pepper is a secret: with it and the records, keys could be tried at home."""
    file = settings.data_dir / "keys" / "pepper"
    try:
        mode = file.stat().st_mode & 0o777
    except OSError:
        return []
    if settings.key_pepper is None and mode & 0o077:
        found = f"other users of this machine may read it (mode {mode:o})"
        return [Check("keys: pepper", "warn", found, f"chmod 600 {file}")]
    return []


def _count(records: Sequence[KeyRecord], now: float) -> str:
    active = sum(record.state(now) == "active" for record in records)
    return f"{active} of {len(records)} active"
