"""Names for requests and answers: unlike any other's, and no secret."""

from __future__ import annotations

import random

# Seeded by the system once. Asking it for every name costs a system call, and before it Python's lock, which a busy
# engine is slow to give back.
_NUMBERS = random.Random()  # noqa: S311 - a name, not a secret


def new_id(prefix: str, *, bits: int = 96) -> str:
    """`prefix` and that many random bits in hexadecimal."""
    return f"{prefix}{_NUMBERS.getrandbits(bits):0{bits // 4}x}"
