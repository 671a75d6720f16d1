"""From references to rows that know who answers them: resolved once for a request, drawn once for each row.

All rows of a request that use one reference speak of the same versions, even while an alias moves. A weighted split
draws one version for each row. With a `seed` the draw is a function of seed, task and input alone, so that asking again
gives the same version, in any batch. Without one it is a hash of a counter under a key of this process's own: shares
follow the weights, and no caller can steer them.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from app.api.schemas.generate import Input, Options
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.backbone import LoadedPrompt
    from app.registry import Registry, Resolved
    from prompt_store import Task

Pins = Mapping[str, "Resolved | Exception"]


class Draws:
    """The dice of weighted splits."""

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._count = itertools.count()

    def pick(self, resolved: Resolved, given: Input, seed: int | None) -> LoadedPrompt:
        """One member, by weight."""
        if seed is None:
            place = _fraction(next(self._count).to_bytes(8, "big"), key=self._key)
        else:
            values = [given] if isinstance(given, str) else [given[name] for name in sorted(given)]
            place = _fraction(json.dumps([seed, resolved.task.name, values]).encode())
        ends = list(itertools.accumulate(resolved.weights))
        return resolved.members[min(bisect_right(ends, place * ends[-1]), len(ends) - 1)]


@dataclass(frozen=True)
class Pinned:
    """One row and the versions that answer it: one, or an ensemble's by `vote` or `mean`. Its deadline and its latency
    count from `arrived`, on the monotonic clock."""

    task: Task
    mode: Literal["one", "vote", "mean"]
    members: tuple[LoadedPrompt, ...]
    given: Input
    options: Options
    arrived: float = field(default_factory=time.monotonic)

    @property
    def first(self) -> LoadedPrompt:
        return self.members[0]

    @property
    def has_labels(self) -> bool:
        return self.first.verbalizer is not None

    @property
    def is_coupled(self) -> bool:
        """Whether the members choose each token together."""
        return self.mode == "mean" and not self.has_labels

    @property
    def fingerprints(self) -> list[str]:
        """`task@version:digest` of each version that answers, the digest shortened."""
        return [f"{one.task}@{one.version}:{one.digest[:12]}" for one in self.members]


async def pin(registry: Registry, refs: Iterable[str]) -> Pins:
    """Resolve each reference once. A reference that cannot be resolved maps to its error."""
    unique = list(dict.fromkeys(refs))
    found = await asyncio.gather(*(registry.resolve(ref) for ref in unique), return_exceptions=True)
    for outcome in found:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome
    return dict(zip(unique, found, strict=True))  # type: ignore[arg-type]


def pin_or_error(draws: Draws, resolved: Resolved | Exception, given: Input, options: Options) -> Pinned | Exception:
    """`pin_row` for one row of several: what stands in the way is its outcome."""
    if isinstance(resolved, Exception):
        return resolved
    try:
        return pin_row(draws, resolved, given, options)
    except InvalidRequest as error:
        return error


def pin_row(draws: Draws, resolved: Resolved, given: Input, options: Options) -> Pinned:
    """The row with its versions. Raises InvalidRequest for options that they cannot honour."""
    if resolved.mode == "split":
        row = Pinned(resolved.task, "one", (draws.pick(resolved, given, options.seed),), given, options)
    else:
        mode = "one" if resolved.mode == "version" else resolved.mode
        row = Pinned(resolved.task, mode, resolved.members, given, options)
    if options.calibrate and not row.has_labels:
        raise InvalidRequest(
            f"{resolved.task.name} has no labels, and only scores of labels can be calibrated", param="calibrate"
        )
    return row


def _fraction(data: bytes, *, key: bytes = b"") -> float:
    """Evenly in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=6, key=key).digest(), "big") / 2**48
