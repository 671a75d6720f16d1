"""Log-probabilities of single tokens from hidden states, with a frozen output layer.

Only the hidden states get a gradient, and that of a log-probability is known before anybody asks for it: with the
softmax p of a row, d log p[t] / d hidden = W[t] - p W. So p W is computed while the logits are there, and the logits,
[N, V] and the largest tensor of a training step, are never kept; a chunk of them exists at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 << 20
"""Float32 logits that exist at one time."""


def token_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, pick: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [M] float32 of `tokens` [M] at hidden states [N, H], token m at row `pick[m]`.

    `weight` [V, H] and `bias` [V] belong to a frozen output layer; differentiable in `hidden` alone, once.
    """
    found: Tensor = _TokenLogProbs.apply(hidden, weight, bias, pick, tokens)
    return found


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, pick: Tensor, tokens: Tensor) -> Tensor:
        learning = ctx.needs_input_grad[0]
        normalizers = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        chosen = torch.empty(pick.shape[0], dtype=torch.float32, device=hidden.device)
        means = torch.empty_like(hidden) if learning else None  # [N, H], p W
        size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, hidden.shape[0], size):
            stop = min(start + size, hidden.shape[0])
            logits = F.linear(hidden[start:stop], weight, bias).float()  # [n, V]
            normalizers[start:stop] = logits.logsumexp(-1)
            inside = slice(None) if stop - start == hidden.shape[0] else (pick >= start) & (pick < stop)
            chosen[inside] = logits[pick[inside] - start, tokens[inside]]
            if means is not None:
                shares = logits.sub_(normalizers[start:stop, None]).exp_()
                means[start:stop] = shares.to(weight.dtype) @ weight
        if means is not None:
            ctx.save_for_backward(means, weight, pick, tokens)
        return chosen - normalizers[pick]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients  # [M]
        means, weight, pick, tokens = ctx.saved_tensors
        towards = gradient[:, None] * (weight[tokens].float() - means[pick].float())  # [M, H]
        found = torch.zeros(means.shape, dtype=torch.float32, device=means.device).index_add_(0, pick, towards)
        return found.to(means.dtype), None, None, None, None
