"""A process that imports what any transformers program with such a model imports: what memory is compared with."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benchmarks.engine import wire


class Imports:
    """The classes are touched, those of the models too: transformers imports lazily."""

    def __init__(self) -> None:
        self.classes = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.DynamicCache)
        self.models = (transformers.LlamaForCausalLM, transformers.Qwen2ForCausalLM)

    def memory(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    wire.serve(Imports(), {"versions": {"torch": torch.__version__}})
