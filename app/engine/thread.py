"""The thread that steps the engine. Commands go in through a queue, events come out through a callback.

Nothing but this thread touches the engine, so the engine needs no locks. Events that nobody waits for are kept back and
told together: each hop wakes the event loop's thread, which takes a core from the step that runs meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from app.backbone.freed_memory import give_back_freed_memory
from app.engine.crew import Crew
from app.engine.engine import Engine
from app.engine.types import Event, FinishReason
from app.errors import EngineFailure

log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[Engine], None]
_PAUSES_S = (0.02, 5.0, None)  # without work before it is a pause, before freed memory goes back to the system

Told = tuple[float, list[Event]]
"""What became of rows in one step, and when, on the monotonic clock."""

MOST_STEPS_HELD = 32
"""Steps after which events are told in any case, so that what is measured of them is not far behind."""


class EngineThread:
    """Runs `engine.step` whenever there is work; sleeps otherwise."""

    def __init__(self, engine: Engine, deliver: Callable[[list[Told]], None], *, threads: int) -> None:
        self._engine, self._deliver = engine, deliver
        self._threads, self._crew = threads, Crew()
        self._commands: deque[Command] = deque()
        self._held: list[Told] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="chorus-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds that the present step, or the commands before it, have taken; 0 while there is no work."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def threads(self) -> int:
        """How many compute now."""
        return self._crew.size

    def send(self, *commands: Command) -> None:
        """Have commands carried out on the engine's thread before its next step."""
        with self._wake:
            self._commands.extend(commands)
            self._wake.notify()

    def set_threads(self, count: int) -> None:
        """Compute with as many threads at most, from the next step on."""
        self.send(lambda _: self._crew.set_most(max(1, count)))

    async def compute(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, computed on this thread before the engine's next step."""
        if not self.alive:
            raise EngineFailure("the engine's thread has died")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(outcome: Future[T]) -> None:
            if done.done():  # whoever asked has gone
                return
            error = outcome.exception()
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(outcome.result())

        def command(_: Engine) -> None:
            outcome: Future[T] = Future()
            try:
                outcome.set_result(call())
            except Exception as error:
                outcome.set_exception(error)
            loop.call_soon_threadsafe(settle, outcome)

        self.send(command)
        return await done

    def _run(self) -> None:
        self._crew.set_most(self._threads or torch.get_num_threads())
        while self._take_commands():
            try:
                events = self._engine.step()
            except Exception as error:  # the thread must outlive any one batch; every request gets its ending
                log.exception("an engine step failed")
                events = self._engine.fail_all(f"the engine failed: {type(error).__name__}")
            if events:
                self._tell(events)
            self._crew.step_done()

    def _tell(self, events: list[Event]) -> None:
        self._held.append((time.monotonic(), events))
        if len(self._held) >= MOST_STEPS_HELD or not self._engine.may_wait(events):
            held, self._held = self._held, []
            self._deliver(held)

    def _rest(self) -> None:
        """Called with the lock held, which whoever sends a command meanwhile must not wait for."""
        self._wake.release()
        try:
            give_back_freed_memory()
        finally:
            self._wake.acquire()

    def _take_commands(self) -> bool:
        """Wait for work and carry out what was sent. False when it is time to stop."""
        with self._wake:
            self._busy_since, pauses = None, 0
            while not self._commands and self._engine.idle and not self._stopping:
                if not self._wake.wait(_PAUSES_S[pauses]):
                    pauses += 1
                    if pauses == 1:
                        self._crew.pause()
                    else:
                        self._rest()
            commands, self._commands = list(self._commands), deque()
            if self._stopping:
                return False
        self._busy_since = time.monotonic()
        for command in commands:
            try:
                command(self._engine)
            except Exception:  # commands end their own requests; nothing they do may end the thread
                log.exception("a command to the engine failed")
        return True


def cancel_command(request_id: str, reason: FinishReason) -> Command:
    return lambda engine: engine.cancel(request_id, reason)
