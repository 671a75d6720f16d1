"""Prompts in other tools' files into a folder of PEFT's, which `chorus import-peft` and PEFT both read. Offline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.errors import InvalidPrompt, InvalidRequest
from app.interchange.adapter_files import CONFIG, PICKLED, AdapterFiles
from app.interchange.formats.caikit import DECODER, ENCODER, read_caikit
from app.interchange.formats.lester import read_npy
from app.interchange.formats.nemo import read_nemo
from app.interchange.formats.peft_pickle import read_peft_pickle

READS = "a .npy, a .nemo or .ckpt of NeMo, a .pt of caikit or TGIS, or a folder with decoder.pt or adapter_model.bin"


def convert(source: Path, *, prompt: str | None = None, template: str | None = None) -> AdapterFiles:
    """What is at `source`, recognised by its name. `prompt` chooses from a table of several, `template` replaces what
    the file says of its wording.

    Raises InvalidPrompt, CapabilityMissing, TooLarge; InvalidRequest where nothing is known of such a file.
    """
    if not source.exists():
        raise InvalidPrompt(f"there is nothing at {source}")
    files = _read(source, prompt)
    return files if template is None else replace(files, template=template)


def _read(source: Path, prompt: str | None) -> AdapterFiles:
    kind = source.suffix.lower()
    if source.is_file() and kind in (".nemo", ".ckpt"):
        return read_nemo(source, prompt)
    if prompt is not None:
        raise InvalidRequest("only a table of NeMo has prompts to choose from", param="prompt")
    if source.is_file() and kind == ".npy":
        return read_npy(source)
    if source.is_dir() and (source / PICKLED).is_file() and (source / CONFIG).is_file():
        return read_peft_pickle(source)
    if (source.is_file() and kind == ".pt") or any((source / name).is_file() for name in (ENCODER, DECODER)):
        return read_caikit(source)
    raise InvalidRequest(f"{source} is none of the files that are known: {READS}")
