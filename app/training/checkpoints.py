"""Private checkpoints of a training run: one safetensors file each, its JSON state in the header, no pickle.

The two newest are kept, so that a damaged one leaves the other. Two attempts of one job never write the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.training.files import write_atomically

KEEP = 2

_NAME = re.compile(r"step-(\d{8})\.attempt-(\d{6})\.safetensors")


class Checkpoints:
    """`folder` belongs to one job, `identity` says what a checkpoint must have been made for to be resumed."""

    def __init__(self, folder: Path, *, attempt: int, identity: str) -> None:
        self._folder = folder
        self._attempt = attempt
        self._identity = identity

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Raises OSError, with the earlier checkpoints untouched."""
        record = json.dumps({"identity": self._identity, "step": step, **state})
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save_safetensors(contiguous, metadata={"state": record})
        write_atomically(self._folder / f"step-{step:08d}.attempt-{self._attempt:06d}.safetensors", data)
        for path in self._newest_first()[KEEP:]:
            path.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that can be read and was made for this plan and backbone."""
        for path in self._newest_first():
            try:
                data = path.read_bytes()
                tensors = load_safetensors(data)
                state = _state(data)
            except (OSError, SafetensorError, ValueError, KeyError):
                continue
            if state.get("identity") == self._identity:
                return tensors, state
        return None

    def _newest_first(self) -> list[Path]:
        found = [(match, path) for path in self._paths() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found, key=lambda pair: pair[0].groups(), reverse=True)]

    def _paths(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []


def _state(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    state: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    return state
