"""Layers that compute twice and keep nothing: gradient checkpointing (Chen et al. 2016, arXiv 1604.06174).

In a forward with gradients a layer keeps its input alone; the backward pass runs it again. transformers' own switch
wants a model in training mode and takes its cache away, which here holds the keys and values that rows are given. So
each layer's call is wrapped: the same function, the same cache, nothing by chance, and so the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers a model is a stack of, encoder's and decoder's, as its architecture names them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute_layers(model: nn.Module, on: bool) -> int:
    """Have all layers computed again in the backward pass, or no longer; how many there are. Forwards without gradients
    stay as they are. Twice is as good as once."""
    layers = repeated_layers(model)
    for layer in layers:
        now = layer.forward
        if on and not isinstance(now, _Again):
            layer.forward = _Again(now)
        elif not on and isinstance(now, _Again):
            layer.forward = now.forward
    return len(layers)


def are_recomputed(model: nn.Module) -> bool:
    return any(isinstance(layer.forward, _Again) for layer in repeated_layers(model))


class _Again:
    """A layer's forward, run once more when its gradient is wanted."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        caches = [of for of in (*args, *kwargs.values()) if isinstance(of, EncoderDecoderCache)]

        def run(*given: Any) -> Any:
            for cache in caches:  # a layer that finds itself done would not ask for the encoder's states again
                cache.is_updated = dict.fromkeys(cache.is_updated, False)
            return self.forward(*given, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
