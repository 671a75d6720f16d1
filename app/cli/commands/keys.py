"""`chorus keys`: make, list, revoke and rotate the keys of the API.

Keys live in the file of a data folder, or in the Redis that CHORUS_REDIS_URL names, for replicas that share it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.config import load_settings
from app.cli.durations import parse_duration
from app.cli.errors import CliError, Exit
from app.cli.options import Debug, Json
from app.cli.output import Output

if TYPE_CHECKING:
    from app.access import KeyRecord, KeyStore, MadeKey
    from app.settings import Settings

LIMITS = "Limits of the key, on all replicas together"

KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id: 12 digits, between the underscores.")]
Scopes = Annotated[
    list[str],
    typer.Option("--scope", help="generate, train or admin (which is all); again for more.", show_default=False),
]
Name = Annotated[str, typer.Option("--name", help="What the key is for; shown in the list.", show_default=False)]
ExpiresIn = Annotated[
    str | None, typer.Option("--expires-in", help="Its life: 90d, 12h, 30m. Unset: until revoked.", show_default=False)
]
Requests = Annotated[
    int | None,
    typer.Option("--requests-per-minute", min=1, max=10_000_000, help="Requests in a minute.", rich_help_panel=LIMITS),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-minute",
        min=1,
        max=10_000_000_000,
        help="Tokens in a minute, vectors included.",
        rich_help_panel=LIMITS,
    ),
]
Concurrent = Annotated[
    int | None,
    typer.Option(
        "--concurrent-jobs", min=0, max=1_000_000, help="Training jobs that have not ended.", rich_help_panel=LIMITS
    ),
]
Total = Annotated[
    int | None,
    typer.Option(
        "--total-jobs", min=0, max=1_000_000_000, help="Training jobs in the key's life.", rich_help_panel=LIMITS
    ),
]
Place = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The keys of this data folder. (Else those in CHORUS_REDIS_URL; else CHORUS_DATA_DIR's)",
        show_default=False,
    ),
]
Overlap = Annotated[str, typer.Option("--overlap", help="How long the secret before stays valid; 0s: not at all.")]


def build() -> typer.Typer:
    keys = typer.Typer(
        name="keys", help="Make, list, revoke and rotate the API's keys.", no_args_is_help=True, add_completion=False
    )
    for command in (create, list_keys, revoke, rotate):
        keys.command(name=command.__name__.removesuffix("_keys"))(command)
    return keys


def create(
    scope: Scopes,
    name: Name = "",
    expires_in: ExpiresIn = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_jobs: Concurrent = None,
    total_jobs: Total = None,
    data_dir: Place = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a key and print it: this once, as only a hash is kept. A running service knows it within two seconds."""
    from app.access import SCOPES, KeyLimits

    out = Output(as_json=as_json)
    scopes = [part for one in scope for part in one.split(",")]
    unknown = [one for one in scopes if one not in SCOPES]
    if unknown:
        raise CliError(f"--scope: {unknown[0]!r} is none of {', '.join(SCOPES)}", Exit.USAGE)
    if len(name) > 80:
        raise CliError("--name: at most 80 characters", Exit.USAGE)
    lifetime_s = None if expires_in is None else parse_duration(expires_in)
    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_jobs=concurrent_jobs,
        total_jobs=total_jobs,
    )
    with _ring(data_dir) as (ring, stores):
        known = [one for one in SCOPES if one in scopes]
        made = ring.create(stores[-1], known, name=name, lifetime_s=lifetime_s, limits=limits)
    _show_secret(made, out)


def list_keys(data_dir: Place = None, as_json: Json = False, debug: Debug = False) -> None:
    """List keys with their scopes, limits, state and last use (to five minutes, while a Redis can be asked)."""
    out = Output(as_json=as_json)
    with _ring(data_dir) as (ring, stores):
        found = list(ring.list())
        used = _last_used(data_dir, stores) if found else {}
    if out.as_json:
        out.data({"data": [view(record, place, used.get(record.id)) for place, record in found], "has_more": False})
        return
    now = time.time()
    rows = [
        [record.id, record.name, ",".join(record.scopes), record.state(now), _day(record.created_at)]
        + [_day(record.expires_at), _day(used.get(record.id)), _limits(record), place]
        for place, record in found
    ]
    if rows:
        out.table(["ID", "NAME", "SCOPES", "STATE", "MADE", "EXPIRES", "LAST USED", "LIMITS", "PLACE"], rows)
    else:
        out.note("No keys. Make one: chorus keys create --scope generate")


def revoke(key: KeyId, data_dir: Place = None, as_json: Json = False, debug: Debug = False) -> None:
    """End a key for ever. Services see it within a second or two; those that cannot reach Redis, when they can."""
    out = Output(as_json=as_json)
    with _ring(data_dir) as (ring, _):
        record = ring.revoke(key)
    if out.as_json:
        out.data(view(record))
    else:
        out.say(f"Revoked {record.id}")


def rotate(
    key: KeyId, overlap: Overlap = "24h", data_dir: Place = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Give a key a new secret and print it; the one before stays valid for a while. Scopes and limits stay."""
    out = Output(as_json=as_json)
    overlap_s = parse_duration(overlap)
    with _ring(data_dir) as (ring, _):
        made = ring.rotate(key, overlap_s=overlap_s)
    _show_secret(made, out)


def view(record: KeyRecord, place: str | None = None, used: float | None = None) -> dict[str, Any]:
    """A record as programs see it: no digest."""
    shown = record.model_dump(mode="json", include={"id", "name", "scopes", "created_at", "expires_at", "revoked_at"})
    shown |= {"state": record.state(time.time()), "limits": record.limits.model_dump()}
    shown["old_secret_until"] = None if record.old is None else record.old.until
    return shown | ({} if place is None else {"place": place, "last_used_at": used})


def _show_secret(made: MadeKey, out: Output) -> None:
    if out.as_json:
        out.data({"key": made.secret, **view(made.record, made.place)})
        return
    out.say(made.secret)
    out.note("Keep it now: it is not shown again. Callers send it as `Authorization: Bearer <key>`,")
    out.note("the commands here take it from --key or CHORUS_API_KEY.")
    if made.record.old is not None:
        out.note(f"The secret before stays valid until {_day(made.record.old.until)}.")


@contextmanager
def _ring(data_dir: Path | None) -> Iterator[tuple[Any, list[KeyStore]]]:
    """The keyring and its places, the one for new keys last. Raises CliError."""
    from app.access import KeyRefused, Keyring, KeysUnavailable, key_stores, pepper_of

    settings = load_settings(data_dir=data_dir)
    if data_dir is not None:
        settings = settings.model_copy(update={"redis_url": None})
    stores = key_stores(settings)
    try:
        yield Keyring(stores, pepper_of(settings)), stores
    except KeyRefused as error:
        raise CliError(str(error), Exit.REFUSED, fix="chorus keys list") from None
    except KeysUnavailable as error:
        fix = "look at CHORUS_REDIS_URL, or name a data folder: --data-dir"
        raise CliError(str(error), Exit.UNREACHABLE, fix=fix) from None
    finally:
        for store in stores:
            store.close()


def _last_used(data_dir: Path | None, stores: list[KeyStore]) -> dict[str, float]:
    """By the Redis at hand: the one of the settings, or the one that runs on the data folder."""
    from app.access import KeysUnavailable
    from app.access.redis_store import RedisKeys

    url = None if isinstance(stores[-1], RedisKeys) else _running(load_settings(data_dir=data_dir))
    asked = stores[-1] if isinstance(stores[-1], RedisKeys) else RedisKeys(url) if url else None
    if asked is None:
        return {}
    try:
        return asked.last_used()
    except KeysUnavailable:
        return {}
    finally:
        asked.close()


def _running(settings: Settings) -> str | None:
    from app.supervisor.embedded import running_url, server_folder

    return running_url(server_folder(settings.data_dir))


def _limits(record: KeyRecord) -> str:
    names = {"requests_per_minute": "req/min", "tokens_per_minute": "tok/min"}
    names |= {"concurrent_jobs": "jobs at once", "total_jobs": "jobs"}
    given = record.limits.model_dump(exclude_none=True)
    return ", ".join(f"{value} {names[name]}" for name, value in given.items())


def _day(at: float | None) -> str | None:
    return None if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
