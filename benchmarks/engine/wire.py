"""A peer is a process: it loads once, then measures on request, so that rounds of all peers interleave in one run.

One line of JSON asks, one line answers, over stdin and stdout. Whatever a library prints goes to stderr. Only the peer
that was asked computes; the others sleep in `readline`. Knows no peer in particular.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
_MIB = 1 << 20
T = TypeVar("T")


class PeerFailed(RuntimeError):
    """A peer's process ended, or answered with an error: its own words, last lines of its log included."""


def serve(peer: object, ready: Mapping[str, Any]) -> None:
    """The peer's side: answer lines until stdin ends. Each line names a method of `peer` and its arguments; `ready` is
    sent first: versions and the like."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries, C++ ones included, must not end up between answers

    def answer(body: Mapping[str, Any]) -> None:
        answers.write(json.dumps(body) + "\n")
        answers.flush()

    answer({**ready, "memory_mib": memory_mib()})
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            answer({**(getattr(peer, ask.pop("op"))(**ask) or {}), "memory_mib": memory_mib()})
        except Exception as error:  # a peer that cannot do something says so and lives on
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})


def memory_mib() -> dict[str, float]:
    """Resident set of this process, now and at its highest; and the part that no file backs."""
    now = psutil.Process().memory_full_info()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"resident": now.rss / _MIB, "own": now.uss / _MIB, "peak": peak}


def arguments() -> dict[str, Any]:
    """The options that `Child` handed over."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    return options


class Child:
    """The runner's side of one peer."""

    def __init__(
        self, name: str, module: str, options: Mapping[str, Any], *, python: str, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log: deque[str] = deque(maxlen=40)
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(dict(options))],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._keep_log, daemon=True).start()
        self.ready = self._read()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One answer. Raises PeerFailed with the peer's own reason."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"{self.name} has ended: {self._last_words()}") from None
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            time.sleep(0.2)  # its last words may still be in the pipe
            raise PeerFailed(f"{self.name} ended with {self._process.returncode}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}")
        return answer

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        try:
            for line in self._process.stderr:
                self._log.append(line.rstrip())
        except ValueError:  # closed under our hands by `close`
            return

    def _last_words(self) -> str:
        said = [line for line in self._log if line.strip()]
        return said[-1][:300] if said else "without a word"


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
