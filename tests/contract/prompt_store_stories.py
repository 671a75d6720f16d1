"""Victims of `prompt_store_victim`, run in a process of their own, and what they said before they died."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Story:
    """What the victims said."""

    begun: dict[str, tuple[str, int]] = field(default_factory=dict)  # key -> task, seed
    acked: dict[str, tuple[int, str]] = field(default_factory=dict)  # key -> number, digest
    deaths: int = 0


def victims(url: str, folder: Path, mode: str, argument: str) -> Story:
    command = [sys.executable, "-m", "tests.contract.prompt_store_victim", url, str(folder), mode, argument]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, timeout=480, stdout=subprocess.PIPE, text=True)
    story = Story()
    for line in done.stdout.splitlines():
        match line.split(" "):
            case ["begin", key, task, seed]:
                story.begun[key] = (task, int(seed))
            case ["ack", key, number, digest]:
                story.acked[key] = (int(number), digest)
            case ["died"]:
                story.deaths += 1
    return story
