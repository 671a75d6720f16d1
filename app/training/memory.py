"""How much of a training step is computed at once, and what gives way where memory is short.

First the micro-batch: half as many tokens, down to the longest row. Then, where one row is still too much, layers are
computed again in the backward pass instead of being kept (recomputation.py), which takes up to half
as long again (docs/training.md).
Neither changes the gradients but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.backbone import Backbone
from app.backbone.placement import free_memory
from app.backbone.recomputation import recompute_layers, repeated_layers
from app.errors import CapabilityMissing

KEPT_VALUES = 17
"""Values of hidden width that a layer keeps for each token: 34 bytes at two each, attention scores apart (Korthikanti
et al. 2022, arXiv 2205.05198, equation 2). With frozen weights it is less: an upper bound."""

ROOM = 0.5
"""Share of the free memory that what the layers keep may take before they are computed again instead."""


@dataclass
class Budget:
    """`tokens` of one forward and backward, padding included. `recompute`: layers are computed again; None where that
    waits for the memory to run out."""

    tokens: int
    recompute: bool | None = None

    def shrink(self, backbone: Backbone, longest: int) -> str | None:
        """Make do with less memory for rows of up to `longest` tokens: what changed, for people; None where nothing is
        left to give way."""
        if self.tokens > longest:
            self.tokens //= 2
            return f"out of memory: {self.tokens} tokens at a time from now on"
        if self.recompute is None and recompute_layers(backbone.model, True):
            self.recompute = True
            return "out of memory: layers are computed again in the backward pass from now on"
        return None


def make_budget(backbone: Backbone, wanted: bool | str, *, tokens: int, longest: int) -> Budget:
    """The budget of a job whose longest row has `longest` tokens; sets the model's layers accordingly.

    `wanted` "auto": layers are computed again from the start where what they would keep of one forward takes more than
    half of the free memory, and otherwise once memory runs out.
    Raises CapabilityMissing where it is asked for and the model's layers cannot be told apart.
    """
    recompute: bool | None
    if wanted == "auto":
        free = _free_bytes(backbone)
        recompute = True if free is not None and kept_bytes(backbone, max(tokens, longest)) > ROOM * free else None
    else:
        recompute = bool(wanted)
    if not recompute_layers(backbone.model, bool(recompute)) and recompute:
        if wanted != "auto":
            raise CapabilityMissing(
                f"{backbone.name} does not say what its layers are, so none can be computed again",
                param="hyperparameters.gradient_checkpointing",
            )
        recompute = None
    return Budget(tokens, recompute)


def kept_bytes(backbone: Backbone, tokens: int) -> int:
    """What the layers keep of a forward over so many tokens for its backward pass, at most."""
    size = KEPT_VALUES * backbone.hidden_size * backbone.dtype.itemsize
    return len(repeated_layers(backbone.model)) * tokens * size


def _free_bytes(backbone: Backbone) -> int | None:
    if backbone.device.type == "cuda":
        free: int = torch.cuda.mem_get_info(backbone.device)[0]
        return free
    return free_memory()
