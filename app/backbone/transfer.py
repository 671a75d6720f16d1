"""Numbers from the host to the device: all that belong together in one transfer that nobody waits for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """The arrays, all of one dtype, as contiguous tensors on `device`.

    To a GPU they go as one piece from page-locked memory, which does not stop the host; the allocator keeps that memory
    until the copy is done.
    """
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    whole = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        whole = whole.pin_memory()
    parts = whole.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
