"""A publisher made to be killed. Run as a process of its own, it forks children that publish and die by SIGKILL.

    python -m tests.contract.prompt_store_victim REDIS_URL FOLDER points fresh|same|together
    python -m tests.contract.prompt_store_victim REDIS_URL FOLDER rounds N

`points`: one child for each step of a publication that touches disk or server; the child dies at that step, in the
middle of it where it is a write; with `together` it publishes three versions and their ensemble. `rounds`: N children
that publish without end and are killed at a random moment.
Lines on standard output: `begin KEY TASK SEED`, `ack KEY NUMBER DIGEST`, once for each version, `died`, `lived`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from prompt_store import BlobStore, NewPrompt, PromptStore, RedisMetadata
from prompt_store.testing import EXAMPLE_SPEC, example_meta, example_tensors

TOGETHER = 3
STEPS = ("open", "write", "fsync", "rename", "utime")


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def publish(store: PromptStore, key: str, task: str, seed: int) -> Any:
    meta = example_meta(task)
    return store.publish(task=task, meta=meta, tensors=example_tensors(meta, seed), publication=key, spec=EXAMPLE_SPEC)


def publish_aloud(store: PromptStore, key: str, task: str, seed: int) -> None:
    say("begin", key, task, seed)
    version = publish(store, key, task, seed).version
    say("ack", key, version.number, version.digest)


def publish_together(store: PromptStore, key: str, task: str, seed: int) -> Any:
    meta = example_meta(task)
    prompts = [NewPrompt(meta, example_tensors(meta, seed + place)) for place in range(TOGETHER)]
    return store.publish_together(task=task, prompts=prompts, publication=key, spec=EXAMPLE_SPEC)


def publish_together_aloud(store: PromptStore, key: str, task: str, seed: int) -> None:
    say("begin", key, task, seed)
    for version in publish_together(store, key, task, seed).versions:
        say("ack", version.publication, version.number, version.digest)


def in_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> bool:
    """Run `work` in a forked child, killed after a while if wanted; whether it died of a SIGKILL."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class Doom:
    """Counts steps, and kills the process at the one it was given."""

    def __init__(self, step: int) -> None:
        self._left = step

    def due(self) -> bool:
        self._left -= 1
        return self._left < 0

    def die(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL came back")

    def arm(self) -> None:
        for name in STEPS:
            setattr(os, name, self._deadly(name, getattr(os, name)))
        self._arm_server_calls()

    def _deadly(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "write" and args[0] == 1:  # what it says of itself is no step
                return real(*args, **options)
            if self.due():
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                self.die()
            return real(*args, **options)

        return call

    def _arm_server_calls(self) -> None:
        real = RedisMetadata._run

        def run(*args: Any, **options: Any) -> Any:
            if self.due():
                self.die()
            reply = real(*args, **options)
            if self.due():
                self.die()
            return reply

        RedisMetadata._run = run  # type: ignore[method-assign]


def die_at_every_point(url: str, folder: Path, content: str) -> None:
    for step in range(1000):

        def work(step: int = step) -> None:
            store = PromptStore(RedisMetadata(url), BlobStore(folder))
            store.epoch()
            Doom(step).arm()
            if content == "together":
                publish_together_aloud(store, f"point-{step}", "sentiment", 10 * step)
            else:
                fresh = content == "fresh"
                publish_aloud(store, f"point-{step}", f"task-{step}" if fresh else "same", step if fresh else 0)

        if not in_child(work):
            say("lived")
            return
        say("died")
    raise AssertionError("no end of steps")


def die_at_random(url: str, folder: Path, rounds: int) -> None:
    def work(turn: int, jobs: int = 10_000) -> None:
        store = PromptStore(RedisMetadata(url), BlobStore(folder))
        for job in range(jobs):
            publish_aloud(store, f"job-{turn}-{job}", "sentiment", 1000 * turn + job % 7)

    began = time.monotonic()
    in_child(lambda: work(rounds, jobs=3))
    longest_s = max(0.12, time.monotonic() - began)  # on a busy machine, too, most get to publish something
    for turn in range(rounds):
        in_child(partial(work, turn), kill_after_s=random.uniform(0.01, longest_s))
        say("died")


if __name__ == "__main__":
    url, folder, mode, argument = sys.argv[1:]
    if mode == "points":
        die_at_every_point(url, Path(folder), argument)
    else:
        die_at_random(url, Path(folder), int(argument))
