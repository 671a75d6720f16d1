"""Private checkpoints of a training run: one safetensors file each, its JSON state in the header, no pickle.

The two newest are kept, so that a damaged one leaves the other; those that were made for something else go, however
far they had come. Two attempts of one job never write the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from app.training.files import write_atomically

KEEP = 2
MAX_HEADER = 100_000_000
"""Bytes of the longest header that the format allows."""

_DAMAGED = (ValueError, LookupError, TypeError, AttributeError)
"""What reading the state of a damaged file leads to."""

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
        written = self._folder / f"step-{step:08d}.attempt-{self._attempt:06d}.safetensors"
        write_atomically(written, data)
        others = [path for path in sorted(self._named(), key=_written, reverse=True) if path != written]
        own = [path for path in others if self._is_own(path)]
        for path in set(others) - set(own[: KEEP - 1]):
            path.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that can be read and was made for this plan and backbone."""
        for path in sorted(self._named(), reverse=True):
            try:
                data = path.read_bytes()
                tensors = load_safetensors(data)
                state = _state(BytesIO(data))
            except (OSError, SafetensorError, *_DAMAGED):
                continue
            if state.get("identity") == self._identity:
                return tensors, state
        return None

    def _is_own(self, path: Path) -> bool:
        """Whether it was made for this plan and backbone, by its header alone."""
        try:
            with path.open("rb") as file:
                return _state(file).get("identity") == self._identity
        except (OSError, *_DAMAGED):
            return False

    def _named(self) -> list[Path]:
        """All checkpoints that lie here, whatever they were made for. Their names sort by step."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return [path for path in found if _NAME.fullmatch(path.name)]


def _written(path: Path) -> tuple[str, str]:
    """Sorts by when they were written: a later attempt may have begun at an earlier step."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    step, attempt = match.groups()
    return attempt, step


def _state(file: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError("no header is that long")
    state: dict[str, Any] = json.loads(json.loads(file.read(length))["__metadata__"]["state"])
    return state
