"""Where and in which dtype the backbone runs: the choice for `auto`, and errors that say what would work."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

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


def device_of(wanted: str, rank: int, processes: int) -> torch.device:
    """The device of one of several processes: GPUs side by side from the wanted one on, or the CPU for all.

    Raises UnsupportedBackbone where there are fewer GPUs than processes.
    """
    first = choose_device(wanted)
    if first.type != "cuda" or processes == 1:
        return first
    index = (first.index or 0) + rank
    if (first.index or 0) + processes > torch.cuda.device_count():
        raise UnsupportedBackbone(
            f"{processes} processes want a GPU each from {first} on, and torch sees {torch.cuda.device_count()}",
            param="train_processes",
        )
    return torch.device("cuda", index)


def check_map(places: Mapping[str, Any]) -> None:
    """Raise UnsupportedBackbone for a model that lies on a disk, or on a CPU beside GPUs: it does not fit."""
    found = {str(place) for place in places.values()}
    if "disk" in found or ("cpu" in found and len(found) > 1):
        raise UnsupportedBackbone(
            "the GPUs' memory does not hold this model, even side by side; nothing is served from a disk or from main "
            "memory beside GPUs",
            param="device_map",
        )


def spread(model: Any) -> bool:
    """Whether a model lies on several devices."""
    return len({str(place) for place in getattr(model, "hf_device_map", {}).values()}) > 1


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


def parameter_count(files: Sequence[Path]) -> int:
    """Numbers in a model's safetensors files, by their heads; in `model.safetensors` alone, where there is one.

    Raises UnsupportedBackbone for a file that is damaged.
    """
    whole = [file for file in files if file.name == "model.safetensors"]
    count = 0
    for file in whole or files:
        try:
            with safe_open(file, framework="pt") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise UnsupportedBackbone(f"{file.name} cannot be read: {error}", param="model") from error
    return count


def free_memory() -> int | None:
    """Bytes that the operating system would give us now; None where it does not say."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    return free[0] if free else None
