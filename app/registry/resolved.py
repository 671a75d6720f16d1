"""What a reference means at one moment: the task, and the verified prompts that answer for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from app.backbone import LoadedPrompt
from prompt_store.models import AliasTarget, Task

Mode = Literal["version", "split", "vote", "mean"]


@dataclass(frozen=True)
class Resolved:
    """`version`: one member answers. `split`: one, drawn for each row by weight. `vote`, `mean`: all answer together.

    Members stand in the order of the alias; `weights` are their shares and sum to 1 (equal ones in an ensemble).
    """

    ref: str
    task: Task
    mode: Mode
    members: tuple[LoadedPrompt, ...]
    weights: tuple[float, ...]


def mode_of(target: AliasTarget) -> Mode:
    if target.ensemble is not None:
        return target.ensemble.mode
    return "split" if target.split is not None else "version"


def weights_of(target: AliasTarget) -> tuple[float, ...]:
    """Shares of the members in the target's order, summing to 1: those of the split, else equal ones."""
    if target.split is None:
        return (1.0 / len(target.versions),) * len(target.versions)
    total = math.fsum(share.weight for share in target.split)
    return tuple(share.weight / total for share in target.split)
