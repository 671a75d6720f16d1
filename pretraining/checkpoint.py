"""Checkpoints: everything a run goes on from, in one safetensors file with JSON in its header, and no pickle.

Written beside its place, flushed, renamed: after a crash at any moment the last whole checkpoint is there. The one
before it is kept until the next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pretraining.errors import WorkError
from pretraining.files import write_atomically
from pretraining.optimizer import Average

KEEP = 2
_STATE = "state"


@dataclass
class Training:
    """What learns, together: a checkpoint holds all of it."""

    model: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    average: Average


def save_checkpoint(folder: Path, training: Training, state: Mapping[str, Any], *, kept: Collection[int] = ()) -> Path:
    """Write `STEP.safetensors`; `state` is JSON with a `step`. Older checkpoints than the last `KEEP` are removed, but
    for those of the steps `kept`."""
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    tensors |= {f"model.{name}": value for name, value in training.model.named_parameters()}
    tensors |= {f"average.{name}": value for name, value in training.average.weights.items()}
    for name, optimizer in training.optimizers.items():
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    file = folder / f"{state['step']:08d}.safetensors"
    write_atomically(file, save(whole, {_STATE: json.dumps(state)}))
    for old in checkpoints(folder)[:-KEEP]:
        if int(old.stem) not in kept:
            old.unlink()
    return file


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints there are, the newest last."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def checkpoint_at(folder: Path, step: int | None) -> Path:
    """The checkpoint of a step, or the newest. Raises WorkError if there is none."""
    found = [file for file in checkpoints(folder) if step is None or int(file.stem) == step]
    if not found:
        raise WorkError(f"there is no checkpoint{'' if step is None else f' of step {step}'} in {folder}: train first")
    return found[-1]


def load_checkpoint(file: Path, training: Training) -> dict[str, Any]:
    """Put everything back into `training`, of the same shapes; the `state` that was saved.

    Raises WorkError if the file is damaged or of another model.
    """
    state, tensors = read_checkpoint(file)
    try:
        _put_back(training, tensors)
    except (KeyError, RuntimeError) as error:
        raise WorkError(f"{file.name} is not a checkpoint of this model: {error}") from None
    torch.set_rng_state(tensors["rng"])
    if "rng_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng_cuda"])
    return state


def read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state, tensors by name, on the CPU). Raises WorkError if the file is damaged."""
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  it is no mapping
            return json.loads(metadata[_STATE]), tensors
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise WorkError(f"{file} cannot be read: {error}") from None


@torch.no_grad()
def _put_back(training: Training, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in training.model.named_parameters():
        parameter.copy_(tensors[f"model.{name}"])
        training.average.weights[name].copy_(tensors[f"average.{name}"])
    for name, optimizer in training.optimizers.items():
        structure = optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            if full.startswith(f"{name}."):
                _, index, key = full.split(".", 2)
                entries.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": entries, "param_groups": structure["param_groups"]})
