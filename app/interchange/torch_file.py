"""Files of `torch.save`: a zip with one pickle and the tensors' numbers as records of their own. Nothing is unpickled.

Only the tensors that are asked for are read, each as the view that the file describes: with its offset and strides,
since what was saved may be a part of something larger.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from app.errors import InvalidPrompt, TooLarge
from app.interchange.pickle_values import TensorRef, read_values
from prompt_store.blob_format import MAX_BLOB_BYTES

MAX_PICKLE_BYTES = 16 << 20
MAX_RECORDS = 20_000
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, LookupError, OverflowError, struct.error)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TorchFile:
    """An open file of `torch.save`. `values` is what was saved, with a `TensorRef` for each tensor."""

    def __init__(self, source: Path | IO[bytes]) -> None:
        """Raises InvalidPrompt and TooLarge."""
        try:
            self._zip = zipfile.ZipFile(source)
        except _DAMAGE:
            raise InvalidPrompt(
                "not a file of torch.save in its present form, a zip; what torch before 1.6 has written is to be saved "
                "again with a newer one"
            ) from None
        names = self._zip.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(names) > MAX_RECORDS or len(set(names)) != len(names) or len(pickles) != 1:
            raise InvalidPrompt("not a file of torch.save: its zip is laid out differently")
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in names and self._record("byteorder", 16) != b"little":
            raise InvalidPrompt("the file's numbers are big endian")
        self.values: Any = read_values(self._record("data.pkl", MAX_PICKLE_BYTES))

    def tensor(self, ref: TensorRef) -> Tensor:
        """The tensor in float32, in memory of its own. Raises InvalidPrompt and TooLarge."""
        dtype = _DTYPES.get(ref.storage.dtype or "")
        if dtype is None:
            raise InvalidPrompt("a tensor of other numbers than float32, float16 and bfloat16")
        if math.prod(ref.size) * 4 > MAX_BLOB_BYTES:
            raise TooLarge(f"a tensor of {list(ref.size)} is larger than any prompt")
        data = self._record(f"data/{ref.storage.key}", 2 * MAX_BLOB_BYTES)
        count = len(data) // dtype.itemsize
        last = ref.offset + sum((size - 1) * stride for size, stride in zip(ref.size, ref.stride, strict=True))
        if 0 in ref.size or last >= count:
            raise InvalidPrompt("a tensor reaches beyond its numbers")
        numbers = torch.frombuffer(bytearray(data), dtype=dtype, count=count)
        return numbers.as_strided(ref.size, ref.stride, ref.offset).to(torch.float32, copy=True).contiguous()

    def _record(self, name: str, limit: int) -> bytes:
        """One record, stored as it is: torch never compresses, so nothing can swell."""
        try:
            entry = self._zip.getinfo(self._root + name)
        except KeyError:
            raise InvalidPrompt(f"the record {name} is missing") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InvalidPrompt("a record is compressed or encrypted, which torch.save does not do")
        if entry.file_size > limit:
            raise TooLarge(f"the record {name} has {entry.file_size} bytes, the limit is {limit}")
        try:
            return self._zip.read(entry)
        except _DAMAGE:
            raise InvalidPrompt(f"the record {name} is damaged") from None
