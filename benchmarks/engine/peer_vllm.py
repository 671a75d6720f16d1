"""vLLM on the CPU, offline: `prompt_embeds`, prefix caching on, prompts warm. Runs in an environment of its own
(setup_vllm.sh).

Its engine runs in this process (no second process for it), which is its faster setting on few cores: it then binds no
threads to cores and computes on all of them, where with processes of its own it keeps a core free for its scheduler
(`vllm/utils/ompmultiprocessing.py`: bound threads on all but one core of x86). A client of vLLM embeds prompt and text
itself; here that happens before the clock starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

# GiB: room for 43,000 tokens of `tiny` and 87,000 of `0.5b`, where 64 rows and all prompts together need 15,000.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
)

import torch
import vllm

from benchmarks.engine import wire
from benchmarks.engine.models import CONTEXT
from benchmarks.engine.peer import BasePeer, word_embeddings
from benchmarks.engine.workload import Ask, row_embeddings


class VllmPeer(BasePeer):
    """`options`: `block_size` (a multiple of 32), `rows` at once."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.model = vllm.LLM(
            str(self.folder),
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            enable_prefix_caching=True,
            block_size=options["block_size"],
            max_num_seqs=options["rows"],
            max_model_len=CONTEXT,
            dtype=self.shape.dtype,
            seed=0,
        )
        if torch.get_num_threads() != options["threads"]:  # it would be measured below its best
            raise RuntimeError(f"vLLM computes with {torch.get_num_threads()} threads, not {options['threads']}")
        self.embedding = word_embeddings(self.folder)

    def forget(self) -> None:
        """Empty the prefix cache, so that no section profits from another's texts."""
        self.model.reset_prefix_cache()

    def inputs(self, asks: Sequence[Ask], how: str) -> list[Any]:
        return [
            {"prompt_embeds": row_embeddings(self.work, self.tasks[task], ask, self.embedding)}
            for ask in asks
            for task in ask.tasks
        ]

    def answer(self, inputs: list[Any], how: str) -> list[Any]:
        finished = self.model.generate(inputs, self._sampling(self.new_tokens), use_tqdm=False)
        outputs = [one.outputs[0] for one in finished]
        if self.work.kind == "generate":
            answers: list[Any] = [list(output.token_ids) for output in outputs]
        else:
            answers = [self._best_label(output.logprobs[0]) for output in outputs]
        return answers if self.work.members == 1 else wire.chunks(answers, self.work.members)

    def alone(self, turn: int, count: int, slot: str = "") -> dict[str, Any]:
        """One request at a time; the first token is the time of a request for one token alone."""
        self._use(slot)
        first, per_token = [], []
        asks = self.asks(turn, 2 * count)
        for ask, other in zip(asks[::2], asks[1::2], strict=True):
            seconds = []
            for one, tokens in ((ask, 1), (other, self.new_tokens)):
                inputs = self.inputs([one], "")
                began = time.perf_counter()
                self.model.generate(inputs, self._sampling(tokens), use_tqdm=False)
                seconds.append(time.perf_counter() - began)
            first.append(seconds[0])
            per_token.append((seconds[1] - seconds[0]) / (self.new_tokens - 1))
        return {"first_s": first, "per_token_s": per_token}

    def _sampling(self, tokens: int) -> Any:
        labels = self.labels if self.work.kind == "labels" else None
        return vllm.SamplingParams(
            max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False, logprob_token_ids=labels
        )

    def _best_label(self, logprobs: Any) -> int:
        scores = [logprobs[label].logprob for label in self.labels]
        return max(range(len(scores)), key=scores.__getitem__)


if __name__ == "__main__":
    wire.serve(VllmPeer(wire.arguments()), {"versions": {"vllm": vllm.__version__}})
