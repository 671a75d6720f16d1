"""How many connections there may be at once, and what the server tells the guard of each.

A connection costs a descriptor, whether it asks anything or not: without a bound, idle ones take those that Redis, the
blobs and the log need. Beyond the bound a few more are taken, to be told so and to let probes through; what comes on
top of these is closed as it is accepted.
"""

from __future__ import annotations

import resource
from typing import Literal

ABORT = "chorus.abort"
"""Key of a scope: ends the request's connection at once, whatever is still unread."""
SPARE = "chorus.spare"
"""Key of a scope: the connection is one too many, and only probes are answered on it."""

SPARES = 32
RESERVE = 256
"""Descriptors that are left for all else: Redis, blobs, logs, libraries, the spare connections."""
MOST = 16_384


class Connections:
    """Counts; used from the event loop only."""

    def __init__(self, most: int) -> None:
        """`most`: connections at once; 0: as many as the process's limit of open files allows."""
        self.most = most or most_by_descriptors()
        self.open = 0
        self.refused = 0

    def arrive(self) -> Literal["taken", "spare", "refused"]:
        """One more; `leave` must be called when it has ended."""
        self.open += 1
        if self.open <= self.most:
            return "taken"
        self.refused += 1
        return "spare" if self.open <= self.most + SPARES else "refused"

    def leave(self) -> None:
        self.open -= 1

    def readings(self) -> dict[str, float]:
        """For the metrics page."""
        return {"http_connections": self.open, "http_connections_refused_total": self.refused}


def most_by_descriptors() -> int:
    """What the soft limit of open files allows, less a reserve; half of it where it is very low."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST
    return max(1, min(MOST, max(files - RESERVE, files // 2)))
