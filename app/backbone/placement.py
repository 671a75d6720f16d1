"""Where and in which dtype the backbone runs: the choice for `auto`, and errors that say what would work."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from app.errors import UnsupportedBackbone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """`auto` takes the first GPU, or else the CPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UnsupportedBackbone(f"unknown device `{wanted}`; use auto, cpu, cuda or cuda:N", param="device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedBackbone(
            "device `cuda` was asked for, but torch sees no GPU; use CHORUS_DEVICE=cpu", param="device"
        )
    return device


def choose_dtype(wanted: str, device: torch.device, *, parameters: int) -> torch.dtype:
    """`auto`: bfloat16 on a GPU that has it (else float16); on the CPU float32, or bfloat16 where float32 weights would
    take more than half of the memory."""
    if wanted != "auto":
        if wanted not in DTYPES:
            raise UnsupportedBackbone(f"unknown dtype `{wanted}`; use auto, {', '.join(DTYPES)}", param="dtype")
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.float32 if 4 * parameters <= memory // 2 else torch.bfloat16


def free_memory() -> int | None:
    """Bytes that the operating system would give us now; None where it does not say."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    return free[0] if free else None
