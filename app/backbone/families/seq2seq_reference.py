"""The plain reference runner of encoder-decoders: each row alone, through the model's own forward, without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from app.backbone.families.seq2seq_forward import parts_of_prompt
from app.backbone.kv import PrefixKV
from app.backbone.layout import embed, lay_out
from app.backbone.rows import Row
from app.backbone.runner import Prefilled, PrefillItem
from app.backbone.soft_prompt import EncoderDecoderPrompt, SoftPrompt
from app.backbone.verbalizer import Verbalizer
from app.errors import InvalidPrompt


class Seq2SeqReference:
    """Same interface as Seq2SeqRunner; slow and sure. It takes vectors on both sides, and no keys and values."""

    name = "reference"

    def __init__(self, model: Any, start: Sequence[int], *, slots: int, places: int) -> None:
        self.slots, self.places = slots, places
        self._model, self._start = model, tuple(start)
        self._read: list[Tensor | None] = [None] * slots  # what the encoder made of each row, [1, S, H]
        self._begun: list[Tensor | None] = [None] * slots  # what the decoder was fed, [1, T, H]
        self._totals = [(0, 0)] * slots  # the caller's length of a row at its start, and the decoder's

    def prefill(self, start: int, items: Sequence[PrefillItem]) -> Prefilled:
        logits, scores = [], []
        for slot, item in enumerate(items, start):
            prompt = parts_of_prompt(item.prompt if item.decoder is None else item.decoder)
            read, begun = self.encode(item.row, prompt), self.begin(prompt)
            logits.append(self.logits(read, begun)[-1])
            scores.append(self.score(item.row, prompt, item.verbalizer) if item.verbalizer else None)
            if slot < self.slots:
                self._read[slot], self._begun[slot] = read, begun
                self._totals[slot] = (item.row.total, begun.shape[1])
        tokens = sum(len(item.row.ids) + len(self._start) for item in items)
        return Prefilled(torch.stack(logits), scores, tokens=tokens, padding=0)

    def decode(self, tokens: Tensor, lengths: Tensor, longest: int) -> Tensor:
        found = []
        words = self._model.get_decoder().get_input_embeddings()(tokens[:, None])  # [B, 1, H]
        for slot, length in enumerate(lengths.tolist()):
            read, fed = self._read[slot], self._begun[slot]
            assert read is not None
            assert fed is not None
            total, begun = self._totals[slot]
            fed = torch.cat((fed[:, : begun + length - total], words[slot : slot + 1]), 1)
            found.append(self.logits(read, fed)[-1])
            self._begun[slot] = fed
        return torch.stack(found)

    def read_prefix(self, slot: int, length: int) -> PrefixKV | None:
        return None

    def move(self, source: int, target: int, length: int) -> None:
        self._read[target], self._begun[target] = self._read[source], self._begun[source]
        self._totals[target] = self._totals[source]

    def wipe(self, slot: int) -> None:
        self._read[slot] = self._begun[slot] = None

    def encode(self, row: Row, prompt: EncoderDecoderPrompt) -> Tensor:
        """[1, S, H]"""
        embedding = self._model.get_input_embeddings()
        embeds = embed(lay_out([Row(row.ids)], offsets=[0], device=embedding.weight.device), embedding, prompt.encoder)
        states: Tensor = self._model.get_encoder()(inputs_embeds=embeds).last_hidden_state
        return states

    def begin(self, prompt: EncoderDecoderPrompt, tokens: Sequence[int] = ()) -> Tensor:
        """What the decoder is fed: vectors, start, tokens.  [1, T, H]"""
        if prompt.prefix is not None or prompt.cross is not None:
            raise InvalidPrompt("this backbone runs row by row and cannot take keys and values from outside")
        size = 0 if prompt.decoder is None else prompt.decoder.shape[0]
        row = Row((*(-1 - j for j in range(size)), *self._start, *tokens))
        embedding = self._model.get_decoder().get_input_embeddings()
        return embed(lay_out([row], offsets=[0], device=embedding.weight.device), embedding, prompt.decoder)

    def logits(self, read: Tensor, fed: Tensor) -> Tensor:
        """The model's own forward: [T, V] float32."""
        done = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=read),
            decoder_inputs_embeds=fed,
            use_cache=False,
        )
        logits: Tensor = done.logits[0].float()
        return logits

    def score(self, row: Row, prompt: SoftPrompt | None, verbalizer: Verbalizer) -> Tensor:
        """Log-scores [K] of the labels, each word in a forward of its own."""
        scores: list[list[Tensor]] = [[] for _ in verbalizer.labels]
        for label, word in verbalizer.flat:
            scores[label].append(self.answer_logprobs(row, prompt, word).sum())
        return torch.stack([torch.stack(words).logsumexp(0) for words in scores])

    def answer_logprobs(self, row: Row, prompt: SoftPrompt | None, answer: Sequence[int]) -> Tensor:
        """Log-probability of each token of a given answer, [len(answer)] float32."""
        sides = parts_of_prompt(prompt)
        logits = self.logits(self.encode(row, sides), self.begin(sides, answer[:-1]))[-len(answer) :]
        ids = torch.tensor(answer, device=logits.device)
        return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
