"""Folders that PEFT before 0.7 has saved: `adapter_model.bin`, a pickle of the adapter's tensors by name."""

from __future__ import annotations

from pathlib import Path

from app.errors import InvalidPrompt
from app.interchange.adapter_config import read_config
from app.interchange.adapter_files import CONFIG, PICKLED, AdapterFiles, read_json
from app.interchange.pickle_values import TensorRef
from app.interchange.tensor_file import read_tensors, write_tensors
from app.interchange.torch_file import TorchFile


def read_peft_pickle(folder: Path) -> AdapterFiles:
    """Raises InvalidPrompt, CapabilityMissing and TooLarge, as reading a new adapter does."""
    config = read_json(folder / CONFIG)
    names = read_config(config).tensor_names
    opened = TorchFile(folder / PICKLED)
    if not isinstance(opened.values, dict):
        raise InvalidPrompt(f"{folder / PICKLED} holds no tensors by name")
    refs = {str(name): ref for name, ref in opened.values.items() if isinstance(ref, TensorRef)}
    if set(refs) != names:
        raise InvalidPrompt(f"{folder / PICKLED} has other tensors than {', '.join(sorted(names))}")
    model = write_tensors({name: opened.tensor(ref) for name, ref in refs.items()})
    read_tensors(model, names)
    return AdapterFiles(config, model)
