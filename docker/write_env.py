"""Write `.env` for docker compose from `.env.example`, with fresh secrets. Standard library only; `make env` calls it.

An existing `.env` is left alone: the password in it already belongs to a Redis volume.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ("CHORUS_API_KEY", "REDIS_PASSWORD", "GRAFANA_PASSWORD")


def render(example: str, profile: str) -> str:
    """The text of `.env`: `example` with each empty secret filled in and the compose profile set."""
    lines = [_fill(line, profile) for line in example.splitlines()]
    return "\n".join(lines) + "\n"


def _fill(line: str, profile: str) -> str:
    name, _, value = line.partition("=")
    if name in SECRETS and not value:
        return f"{name}={secrets.token_urlsafe(32)}"
    return f"{name}={profile}" if name == "COMPOSE_PROFILES" else line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write .env with fresh secrets.")
    parser.add_argument("--profile", choices=("cpu", "gpu"), default="cpu", help="which API and worker compose starts")
    parser.add_argument("--folder", type=Path, default=ROOT, help="folder of .env.example and .env")
    options = parser.parse_args(arguments)
    target = options.folder / ".env"
    text = render((options.folder / ".env.example").read_text(encoding="utf-8"), options.profile)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stdout.write(f"{target} exists already; nothing changed.\n")
        return 0
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    sys.stdout.write(f"Wrote {target}. Start with: docker compose up --build\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
