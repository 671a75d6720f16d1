"""What is known of a request's caller while it is answered: who, what it has spent, what it did.

It travels in a context variable, so that what counts a row's tokens need not be handed the caller through every layer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.access import Caller
from app.errors import DeadlineExceeded, RequestCancelled

if TYPE_CHECKING:
    from app.api.pinning import Pinned
    from app.backbone import LoadedPrompt

_LEFT = (DeadlineExceeded, RequestCancelled, asyncio.CancelledError, GeneratorExit)
BYTES_OF_TOKEN = 4
"""By which a row's tokens are guessed that nobody counted."""

NOBODY = Caller("", frozenset({"admin"}))
"""Who calls a service that asks for no key."""


@dataclass
class Account:
    """Of one request. `facts` go to the audit log: names and ids, never what a user wrote."""

    caller: Caller = NOBODY
    tokens: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)

    def spend(self, tokens: int) -> None:
        self.tokens += tokens

    def take(self) -> int:
        """What was spent since this was asked last."""
        taken, self.tokens = self.tokens, 0
        return taken


account: ContextVar[Account | None] = ContextVar("account", default=None)


def tenant() -> str:
    """Between whom the engine is fair: the key's id, empty where no key is asked for."""
    current = account.get()
    return current.caller.id if current is not None else ""


def count_answer(version: str, tokens: int) -> None:
    """A row was answered by `version` (`task@3`)."""
    current = account.get()
    if current is not None:
        current.spend(tokens)
        current.versions.add(version)


def count_unanswered(
    error: BaseException, given: str | Mapping[str, str], prompts: Sequence[LoadedPrompt], sent: int = 0
) -> None:
    """Work that nobody waits for any more was work: a row that is left or comes too late costs its vectors, a guess of
    its text, and the `sent` pieces of its stream. A row that failed otherwise costs nothing."""
    current = account.get()
    if current is None or not isinstance(error, _LEFT):
        return
    texts = [given] if isinstance(given, str) else given.values()
    text = sum(len(one.encode("utf-8", "surrogatepass")) for one in texts) // BYTES_OF_TOKEN + 1
    current.spend(sum(prompt.num_virtual_tokens + text for prompt in prompts) + sent)


@contextmanager
def unanswered_counts(row: Pinned, sent: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """`count_unanswered` for what a row's work raises."""
    try:
        yield
    except BaseException as error:
        count_unanswered(error, row.given, row.members, sent())
        raise
