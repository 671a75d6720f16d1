"""What `chorus up` shows of its settings."""

from __future__ import annotations

import pytest

from app.supervisor.up import hide_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://me:secret@host:6379/0", "redis://me:***@host:6379/0"),
        ("rediss://host/0?db=1&password=secret", "rediss://host/0?db=1&password=***"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        (
            "redis+sentinel://:secret@one:26379,two/chorus?sentinel_password=secret",
            "redis+sentinel://:***@one:26379,two/chorus?sentinel_password=***",
        ),
    ],
)
def test_address_of_a_server_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert hide_password(url) == shown
