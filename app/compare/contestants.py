"""Who is compared: every method of training, what needs no training, and what changes the model's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from app.errors import InvalidRequest
from app.training.methods import METHODS, SearchedMethod

Kind = Literal["written", "learned", "searched", "ensemble", "weights"]


@dataclass(frozen=True)
class Contestant:
    """`config` is a method's, by its type. `rate` is the middle of the grid of what has no rate of its own."""

    name: str
    title: str
    kind: Kind
    config: dict[str, Any] = field(default_factory=dict)
    rate: float | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether it is a prompt that was found on the training rows by one of the service's methods."""
        return self.kind in ("learned", "searched")


BASE = "prompt_tuning"
"""Whose prompts an ensemble joins, and other tasks begin as."""

_KNOWN: tuple[Contestant, ...] = (
    Contestant("majority", "most common answer", "written"),
    Contestant("zero_shot", "zero-shot", "written"),
    Contestant("few_shot", "hand-written, examples in the context", "written"),
    Contestant(BASE, "prompt tuning", "learned", {"type": "prompt_tuning", "reparametrization": "none"}),
    Contestant("full", "full fine-tuning", "weights", rate=3e-4),
    Contestant("residual", "residual prompt tuning", "learned", {"type": "residual"}),
    Contestant("prefix_tuning", "prefix tuning", "learned", {"type": "prefix_tuning"}),
    Contestant("lora", "LoRA, rank 8, all linear layers", "weights", rate=1e-3),
    Contestant("last_layers", "last quarter of the layers", "weights", rate=5e-4),
    Contestant("p_tuning_mlp", "P-tuning, MLP", "learned", {"type": "p_tuning", "encoder": "mlp"}),
    Contestant("p_tuning_lstm", "P-tuning, LSTM", "learned", {"type": "p_tuning", "encoder": "lstm"}),
    Contestant("multitask", "multitask prompt tuning", "learned", {"type": "multitask"}),
    Contestant("spot", "SPoT, from the nearest other task", "learned", {"type": "spot"}),
    Contestant("hard", "searched words", "searched", {"type": "hard"}),
    Contestant("ensemble", "ensemble of prompts", "ensemble"),
)
"""In the order they run, so that what is asked most often is there first."""

CONTESTANTS: tuple[Contestant, ...] = _KNOWN + tuple(
    Contestant(
        kind, kind.replace("_", " "), "searched" if isinstance(of, SearchedMethod) else "learned", {"type": kind}
    )
    for kind, of in METHODS.items()
    if kind not in {"prune", *(one.config.get("type") for one in _KNOWN)}
)
"""These, and every further method of training as it is by default; but pruning only shortens what another found."""

BY_NAME = {one.name: one for one in CONTESTANTS}


def choose(names: Sequence[str] | None) -> tuple[Contestant, ...]:
    """Those named, in the order they run; all without names. Raises InvalidRequest."""
    unknown = [name for name in names or () if name not in BY_NAME]
    if unknown:
        raise InvalidRequest(f"no method {unknown[0]!r}; there are {', '.join(BY_NAME)}", param="methods")
    return tuple(one for one in CONTESTANTS if not names or one.name in names)
