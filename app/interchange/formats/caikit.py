"""The prompts of caikit and TGIS: a folder with `decoder.pt`, for encoder-decoders `encoder.pt` too, each one tensor
[P, H], and `config.yml`; or one of the two files alone.

A decoder's prompt is in `decoder.pt`. With both files the first half is the encoder's, which alone answers, as in
PEFT; TGIS put the second before the decoder's text.

    https://github.com/caikit/caikit-nlp/blob/main/caikit_nlp/modules/text_generation/peft_prompt_tuning.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from app.errors import InvalidPrompt
from app.interchange.adapter_files import AdapterFiles
from app.interchange.formats.vectors import vectors_adapter
from app.interchange.formats.yaml_file import read_yaml
from app.interchange.pickle_values import TensorRef
from app.interchange.torch_file import TorchFile

ENCODER, DECODER, CONFIG = "encoder.pt", "decoder.pt", "config.yml"


def read_caikit(source: Path) -> AdapterFiles:
    """A folder, or one tensor's file. Raises InvalidPrompt and TooLarge."""
    folder = source if source.is_dir() else source.parent
    wanted = [folder / ENCODER, folder / DECODER] if source.is_dir() else [source]
    found = {file.name: _tensor(file) for file in wanted if file.is_file()}
    if not found:
        raise InvalidPrompt(f"{source} has neither {DECODER} nor {ENCODER}")
    config = read_yaml((folder / CONFIG).read_bytes()) if (folder / CONFIG).is_file() else {}
    base = config.get("base_model_name")
    base_model = base if isinstance(base, str) else None
    template = _template(config.get("verbalizer"))
    if ENCODER not in found:
        (vectors,) = found.values()
        return vectors_adapter(vectors, "CAUSAL_LM", base_model=base_model, template=template)
    halves = list(found.values())
    if len({tuple(half.shape) for half in halves}) > 1:
        raise InvalidPrompt(f"{ENCODER} and {DECODER} are of different shapes")
    return vectors_adapter(
        torch.cat(halves), "SEQ_2_SEQ_LM", submodules=len(halves), base_model=base_model, template=template
    )


def _tensor(file: Path) -> Tensor:
    opened = TorchFile(file)
    if not isinstance(opened.values, TensorRef):
        raise InvalidPrompt(f"{file} holds something else than one tensor")
    return opened.tensor(opened.values)


def _template(verbalizer: object) -> str | None:
    """caikit's `{{input}}` is our field `text`; other braces are braces."""
    if not isinstance(verbalizer, str) or "{{input}}" not in verbalizer or len(verbalizer) > 8192:
        return None
    parts = (part.replace("{", "{{").replace("}", "}}") for part in verbalizer.split("{{input}}"))
    return "{text}".join(parts)
