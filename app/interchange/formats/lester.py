"""The prompts of google-research/prompt-tuning: one `.npy` of [P, H], for T5's encoder.

https://github.com/google-research/prompt-tuning
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from app.errors import InvalidPrompt, TooLarge
from app.interchange.adapter_files import AdapterFiles
from app.interchange.formats.vectors import vectors_adapter
from prompt_store.blob_format import MAX_BLOB_BYTES


def read_npy(file: Path) -> AdapterFiles:
    """Raises InvalidPrompt for anything but a matrix of float32 or float16, TooLarge."""
    if file.stat().st_size > MAX_BLOB_BYTES:
        raise TooLarge(f"{file} is larger than {MAX_BLOB_BYTES} bytes")
    try:  # mapped, so that a head which promises more than the file holds costs nothing
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError):
        raise InvalidPrompt(f"{file} is not an array that numpy has saved") from None
    if not isinstance(array, np.ndarray) or array.dtype.newbyteorder("=") not in (np.float32, np.float16):
        raise InvalidPrompt(f"{file} is not one array of float32 or float16")
    vectors = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return vectors_adapter(vectors, "SEQ_2_SEQ_LM", template=None)
