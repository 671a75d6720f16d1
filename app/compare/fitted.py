"""What a run on the training rows leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from app.training.runs import Judgement


@dataclass(frozen=True)
class Fitted:
    """`judgement` on the dev rows; `seconds` of training, its dev evaluations included. `tensors` are what one task
    must store beside `template`, its words; `trained` counts the numbers that gradients moved. `cpu_seconds` are those
    of the processor, rows encoded too: what a busy machine does not change."""

    judgement: Judgement
    seconds: float
    template: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    trained: int = 0
    best_step: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def stored_bytes(self) -> int:
        return sum(part.nbytes for part in self.tensors.values()) + len(self.template.encode())

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, for JSON."""
        judged = self.judgement
        return {
            "dev": judged.score,
            "dev_loss": judged.loss,
            "lower_is_better": judged.lower_is_better,
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "template": self.template,
            "trained": self.trained,
            "stored_bytes": self.stored_bytes,
            "best_step": self.best_step,
            "rates": dict(self.rates),
        }
