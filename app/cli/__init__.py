"""The `chorus` command. Composition only: it parses, calls what does the work, and shows what came of it."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status (`app/cli/errors.py` lists them)."""
    from app.cli.run import run

    return run(argv)


__all__ = ["main"]
