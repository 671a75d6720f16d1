"""Networks of an encoder's kind that are trained with a prompt and folded away: their start and their learning rates.

Everything is drawn from the run's own generator, with the distributions that torch's layers begin with, so that the
weights of a PEFT encoder can stand in their places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def start_network(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter anew: embeddings from the standard normal, layers from U(±1/√fan), as torch does."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            _fill(module.weight, torch.randn(module.weight.shape, generator=generator))
        elif isinstance(module, nn.Linear):
            _fill_uniform(module, module.in_features, generator)
        elif isinstance(module, nn.LSTM):
            _fill_uniform(module, module.hidden_size, generator)


def last_of(layers: nn.Sequential) -> nn.Linear:
    layer = layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def scale_output(last: nn.Linear, network_output: Tensor, wanted: float) -> float:
    """Scale the last layer so that the output has the RMS `wanted`; the factor. What goes in has already been seen."""
    factor = wanted / max(float(network_output.detach().pow(2).mean().sqrt()), 1e-12)
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor)
    return factor


def network_rates(
    network: nn.Module, last: nn.Linear, rate: float | None, *, auto: float, last_factor: float
) -> dict[str, float]:
    """One rate for all, as PEFT's users set it; or `auto`, and for the last layer as much more or less as its weights
    were scaled by, since a step of Adam is as large as the rate whatever the weight."""
    if rate is not None:
        return {name: rate for name, _ in network.named_parameters()}
    scaled = {id(last.weight), id(last.bias)}
    return {
        name: auto * last_factor if id(parameter) in scaled else auto for name, parameter in network.named_parameters()
    }


def _fill_uniform(module: nn.Module, fan: int, generator: torch.Generator) -> None:
    bound = fan**-0.5
    for parameter in module.parameters(recurse=False):
        _fill(parameter, (torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def _fill(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
