"""transformers' continuous batching. Its requests are token ids alone, so prompts become *virtual ids* behind the
vocabulary, and the model's embedding looks those up in a table of all prompts.

Blocks of the cache are shared between requests that begin alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.engine import wire
from benchmarks.engine.peer import BasePeer
from benchmarks.engine.workload import Ask

PLACES = 32 * 1024


class VirtualEmbedding(torch.nn.Module):
    """Word embeddings below V, the prompts' vectors from V on."""

    def __init__(self, words: torch.nn.Module) -> None:
        super().__init__()
        self.words: Any = words
        self.weight: Any = words.weight
        self.table = torch.empty(0)

    def forward(self, ids: Tensor) -> Tensor:
        vocabulary = self.weight.shape[0]
        virtual = ids >= vocabulary
        vectors = self.table[(ids - vocabulary).clamp(min=0)]
        return torch.where(virtual[..., None], vectors, self.words(ids.masked_fill(virtual, 0)))


class ContinuousPeer(BasePeer):
    """`options`: `rows` at once, `batch_tokens` in one forward, `block_size` in tokens. It returns tokens, never the
    scores of chosen words."""

    kinds = frozenset({"generate"})

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.shape.torch_dtype, trust_remote_code=False
        )
        self.model.eval().requires_grad_(False)
        self.embedding = VirtualEmbedding(self.model.get_input_embeddings())
        self.model.set_input_embeddings(self.embedding)
        self._manager: Any = None

    def warm_up(self) -> None:
        self.embedding.table = torch.cat([task.vectors for task in self.tasks]).to(self.shape.torch_dtype)
        starts = torch.tensor([0] + [task.size for task in self.tasks]).cumsum(0).tolist()
        self._virtual = [
            list(range(self.shape.vocabulary + start, self.shape.vocabulary + start + task.size))
            for start, task in zip(starts, self.tasks, strict=False)
        ]
        self._restart()
        self.answer(self.inputs(self.every_task(0, 16), ""), "")

    def inputs(self, asks: Sequence[Ask], how: str) -> list[list[int]]:
        return [[*self._virtual[ask.task], *ask.ids] for ask in asks]

    def answer(self, inputs: list[list[int]], how: str) -> list[Any]:
        wanted = self._manager.add_requests(inputs=inputs, max_new_tokens=self.new_tokens)
        outputs: dict[str, Any] = {}
        while len(outputs) < len(wanted):
            output = self._manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                outputs[output.request_id] = output
            elif output is None and not self._manager.is_running():
                raise RuntimeError("its generation thread ended")
        return [list(outputs[request].generated_tokens) for request in wanted]

    def _restart(self) -> None:
        """A manager of its own for each workload. It lives through all rounds, and with it its cache of prompts."""
        if self._manager is not None:
            self._manager.stop(block=True)
        generation = GenerationConfig(
            max_new_tokens=self.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        batching = ContinuousBatchingConfig(
            page_size=self.options["block_size"],
            num_blocks=PLACES // self.options["block_size"],
            max_batch_tokens=self.options["batch_tokens"],
            max_requests_per_batch=self.options["rows"],
            use_cuda_graph=False,
        )
        self._manager = self.model.init_continuous_batching(generation, batching)
        self._manager.start()


if __name__ == "__main__":
    wire.serve(ContinuousPeer(wire.arguments()), {"versions": {"transformers": transformers.__version__}})
