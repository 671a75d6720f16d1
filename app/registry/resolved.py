"""What a reference means at one moment: the task, and the verified prompts that answer for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.backbone import LoadedPrompt
from prompt_store.models import Task

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
