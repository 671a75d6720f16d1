"""What every trained contestant is given: so many steps, so many tries at the learning rate, the same chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from app.training.requests import Hyperparameters
from app.training.schedule import Schedule, make_schedule

GRID = (0.3, 1.0, 3.0)
"""Learning rates tried, as multiples of each contestant's own."""


@dataclass(frozen=True)
class Budget:
    """`grid` multiplies a contestant's own learning rate, one run each; what has no rate tries as many draws of its
    examples. `shots` are a hand-written prompt's examples, `members` an ensemble's prompts."""

    steps: int = 200
    batch_size: int = 16
    grid: tuple[float, ...] = GRID
    seed: int = 0
    shots: int = 8
    members: int = 5

    def schedule(self, *, rows: int, num_virtual_tokens: int, seed: int) -> Schedule:
        wanted = Hyperparameters(batch_size=self.batch_size, seed=seed)
        made = make_schedule(wanted, rows=rows, num_virtual_tokens=num_virtual_tokens)
        per_epoch = -(-rows // made.batch_size)
        return replace(made, steps=self.steps, epochs=round(self.steps / per_epoch, 3))

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"grid": list(self.grid)}
