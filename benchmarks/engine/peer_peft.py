"""PEFT prompt tuning: one adapter for each task on one model, as its users serve several tasks.

`switched` answers requests in arrival order, switching the adapter for each; `grouped` sorts them by task first and
answers each group in left-padded batches of 32. Padded rows of such a batch are not exact, their tokens may differ from
`generate`'s: PEFT drops the caller's positions and puts the prompt before the padding, so that between a short row's
prompt and its text lie places that attention skips but positions count.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from benchmarks.engine import wire
from benchmarks.engine.peer import BasePeer, read_last_rows_well
from benchmarks.engine.workload import Ask

BATCH = 32


class PeftPeer(BasePeer):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._base: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.shape.torch_dtype, trust_remote_code=False
        )
        self._base.eval().requires_grad_(False)
        read_last_rows_well(self._base)
        self.model: Any = None

    def warm_up(self) -> None:
        if self.model is not None:
            self._base = self.model.get_base_model()
        for i, task in enumerate(self.tasks):
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=task.size)
            if i == 0:
                self.model = peft.get_peft_model(self._base, config, adapter_name="0")
            else:
                self.model.add_adapter(str(i), config)
            self.model.prompt_encoder[str(i)].embedding.weight.data = task.vectors.to(self.shape.torch_dtype)
        self.model.eval().requires_grad_(False)
        self.answer(self.every_task(0, 16), "grouped")

    def answer(self, inputs: Sequence[Ask], how: str) -> list[Any]:
        if how == "switched":
            return [answer for ask in inputs for answer in self._batch(ask.task, [ask])]
        answers: dict[int, Any] = {}
        for task in range(len(self.tasks)):
            group = [i for i, ask in enumerate(inputs) if ask.task == task]
            for part in wire.chunks(group, BATCH):
                answers.update(zip(part, self._batch(task, [inputs[i] for i in part]), strict=True))
        return [answers[i] for i in range(len(inputs))]

    @torch.inference_mode()
    def _batch(self, task: int, asks: Sequence[Ask]) -> list[Any]:
        self.batches.append(len(asks))
        rows = [torch.tensor(ask.ids) for ask in asks]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.set_adapter(str(task))
            if self.work.kind == "labels":
                logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits
                return list(logits[:, -1, self.labels].argmax(-1).tolist())
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return list(out[:, ids.shape[1] :].tolist())


if __name__ == "__main__":
    wire.serve(PeftPeer(wire.arguments()), {"versions": {"peft": peft.__version__}})
