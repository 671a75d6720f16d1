"""Where a run lives: its work folder, the texts it reads, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """`work` is the run's own folder. `packed` holds the tokenizer and the shards where another run made them, one with
    the same texts; else they are in `work`."""

    work: Path
    data: Path
    device: str = "cpu"
    packed: Path | None = None

    @property
    def texts(self) -> Path:
        """The folder with `tokenizer/` and `shards/`."""
        return self.packed or self.work

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def log(self) -> Path:
        return self.work / "train.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.work / "evaluations.jsonl"
