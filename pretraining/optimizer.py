"""Muon for the matrices inside the layers, AdamW for embeddings and norms, one schedule over both, averaged weights.

Muon (Jordan et al. 2024, `torch.optim.Muon`) makes each matrix's update orthogonal; embeddings are looked up, not
multiplied, so theirs stay with AdamW. The schedule is warm-up, constant, linear decay (Hägele et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretraining.recipe import TrainRecipe

_BASE = "base_rate"


def make_optimizers(model: nn.Module, recipe: TrainRecipe) -> dict[str, torch.optim.Optimizer]:
    """By name: one for the matrices, one for the rest; they share nothing and leave nothing out."""
    matrices, others = split_parameters(model)
    rate, decay = recipe.matrix_rate, recipe.matrix_weight_decay
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if recipe.matrices == "muon":
        optimizers["muon"] = torch.optim.Muon(matrices, lr=rate, momentum=recipe.momentum, weight_decay=decay)
    else:
        optimizers["matrices"] = torch.optim.AdamW(matrices, lr=rate, betas=(0.9, 0.95), weight_decay=decay)
    optimizers["adamw"] = torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group[_BASE] = group["lr"]
    return optimizers


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside the layers, embeddings and norms)."""
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and id(parameter) not in looked_up and "lm_head" not in name
        (matrices if inside else others).append(parameter)
    return matrices, others


def rate_at(step: int, recipe: TrainRecipe, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`, as a share of the recipe's."""
    rising = min(1.0, (step + 1) / recipe.warm_up)
    begin = steps * (1 - recipe.decay)
    if step < begin:
        return rising
    left = (steps - step) / (steps - begin)
    return rising * max(recipe.final, left)


def set_rate(optimizers: dict[str, torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group[_BASE] * share


class Average:
    """An exponential moving average of the weights, in fp32: steadier than the last ones while the rate is high.

    The decay grows from small to the recipe's, so that the random begin is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = dict(model.named_parameters())
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights for the average; the second call exchanges them back."""
        for name, value in self._live.items():
            kept = value.detach().clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)
