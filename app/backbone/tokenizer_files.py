"""A tokenizer from a model's folder: the one its file describes.

`AutoTokenizer` may go by the model's type instead and build, say, Qwen2's byte-level BPE around the words of another
kind of tokenizer. Then every text becomes no ids at all, and nothing says so. A folder whose configuration names the
general class is read as its `tokenizer.json` stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.errors import UnsupportedBackbone

_GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SOME_TEXT = "The quick brown fox, 1 2 3"


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a model.

    Raises ValueError, OSError or KeyError as transformers does, UnsupportedBackbone for one that reads no text."""
    general = (folder / "tokenizer.json").exists() and _named_class(folder) in _GENERAL
    kind = PreTrainedTokenizerFast if general else AutoTokenizer
    tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.encode(_SOME_TEXT, add_special_tokens=False):
        raise UnsupportedBackbone(
            f"{folder.name}: the tokenizer, loaded as {type(tokenizer).__name__}, finds no token in a text; "
            "check `tokenizer_class` in tokenizer_config.json",
            param="model",
        )
    return tokenizer


def _named_class(folder: Path) -> str | None:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.exists() else None
