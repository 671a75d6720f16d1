"""The two models that are measured: random weights with a fixed seed, saved once as a plain transformers folder.

Every peer loads the same files. Speed does not depend on what weights say, so nothing has to be downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SEED = 20
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """A decoder's shape. `kind` is transformers' model type, `dtype` what it is served in."""

    name: str
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    tied: bool
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    @property
    def gemms(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the matrix products of one layer: query, key and value as one, output, gate and up as
        one, down."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_width
        return [
            (self.hidden, qkv),
            (self.hidden, self.hidden),
            (self.hidden, 2 * self.feed_forward),
            (self.feed_forward, self.hidden),
        ]

    @property
    def layer_weights(self) -> int:
        """Weights that every token is multiplied with, all layers together, the head left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.gemms)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_width * self.torch_dtype.itemsize


SHAPES = {
    "tiny": Shape("tiny", "llama", 384, 8, 6, 6, 1024, 8192, tied=False, dtype="float32"),
    "0.5b": Shape("0.5b", "qwen2", 896, 24, 14, 2, 4864, 151_936, tied=True, dtype="bfloat16"),
}


def model_folder(work: Path, name: str) -> Path:
    """The folder of a model, written at the first call: config, safetensors, tokenizer."""
    folder = work / "models" / name
    if not (folder / "tokenizer.json").exists():
        shape = SHAPES[name]
        folder.mkdir(parents=True, exist_ok=True)
        make_model(shape).save_pretrained(folder)
        save_tokenizer(shape.vocabulary, folder)
    return folder


def make_model(shape: Shape) -> Any:
    """Random weights. No end token: every request runs to its length."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[shape.kind](
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.feed_forward,
        vocab_size=shape.vocabulary,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(config, dtype=shape.torch_dtype).eval().requires_grad_(False)


def save_tokenizer(vocabulary: int, folder: Path) -> None:
    """One word for each id, `w17` is 17: text that has exactly the ids one wants, for peers that insist on text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
