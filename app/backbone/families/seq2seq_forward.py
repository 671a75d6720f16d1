"""The forward of an encoder-decoder: many rows' texts through the encoder, then what is tried or written behind each.

Both sides are right-padded. The encoder sees each row's own tokens; relative positions (T5) and absolute ones (BART)
are counted from the row's first token, so padding behind it moves nothing. Decoder rows are causal, so padding behind
them is seen by nobody. A prompt may stand on the encoder's side (vectors at the template's slots) and on the decoder's
(vectors before the start token, keys and values before those, keys and values beside the encoder's).

Decoder rows whose given keys and values differ in length go apart: the model counts positions once for the batch.

Shapes: B rows, S encoder tokens, W decoder rows, T decoder tokens, N tokens read, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from app.backbone.families.seq2seq_caches import pass_cache
from app.backbone.kv import PrefixKV
from app.backbone.layout import PAD, embed, lay_out, stack_prompts
from app.backbone.rows import Row
from app.backbone.soft_prompt import EncoderDecoderPrompt, SoftPrompt, vectors_of
from app.backbone.token_probs import token_log_probs
from app.errors import InvalidPrompt

NO_LEADING_KEYS = "an encoder-decoder takes keys and values on its decoder's side only"


@dataclass(frozen=True)
class Sources:
    """What the encoder made of B rows: `states` [B, S, H], `seen` [B, S] bool."""

    states: Tensor
    seen: Tensor
    lengths: tuple[int, ...]
    padding: int


@dataclass(frozen=True)
class Target:
    """A decoder row: `tokens` behind the start of the decoder, reading row `source`, `reads` columns counted from the
    start's last token (0: what comes first)."""

    source: int
    tokens: tuple[int, ...] = ()
    reads: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Decoded:
    """One pass over decoder rows `rows` (places among the targets): hidden states [n, H] at their reads, and the cache
    that holds their keys and values."""

    rows: tuple[int, ...]
    hidden: Tensor
    cache: EncoderDecoderCache

    def keys_and_values(self, *, cross: bool) -> Tensor:
        """What the layers hold of the decoder's tokens, or of the encoder's: [2, L, n, G, T, D]."""
        layers = (self.cache.cross_attention_cache if cross else self.cache.self_attention_cache).layers
        keys = torch.stack([layer.keys for layer in layers if layer.keys is not None])
        return torch.stack((keys, torch.stack([layer.values for layer in layers if layer.values is not None])))


def parts_of_prompt(prompt: SoftPrompt | None) -> EncoderDecoderPrompt:
    """A prompt by its sides. Raises InvalidPrompt for leading keys and values, which an encoder has no place for."""
    if isinstance(prompt, PrefixKV):
        raise InvalidPrompt(NO_LEADING_KEYS)
    return prompt if isinstance(prompt, EncoderDecoderPrompt) else EncoderDecoderPrompt(vectors_of(prompt))


@dataclass(frozen=True)
class Seq2SeqForward:
    """The model with what the probe learned about it. `start`: the ids a decoder begins with. `aligned`: only distances
    between tokens count in the decoder, so that rows of unequal length may take a step side by side. `spread`: its
    decoder wants the encoder's states once for every decoder row, not once for every text (UMT5). `scaled`: its output
    layer reads hidden states divided by the root of their width (T5 with tied embeddings)."""

    model: Any
    start: tuple[int, ...]
    aligned: bool = True
    spread: bool = False
    scaled: bool = False

    @cached_property
    def layers(self) -> int:
        """Of the decoder."""
        config = self.model.config
        found = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers", "num_hidden_layers"))
        return next(int(count) for count in found if count)

    @cached_property
    def decoder(self) -> Any:
        return self.model.get_decoder()

    @property
    def words(self) -> torch.nn.Module:
        """The decoder's word embeddings."""
        module: torch.nn.Module = self.decoder.get_input_embeddings()
        return module

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def head_length(self, prompt: EncoderDecoderPrompt) -> int:
        """Tokens a decoder row begins with: vectors and the start."""
        return len(self.start) + (0 if prompt.decoder is None else prompt.decoder.shape[0])

    def encode(self, rows: Sequence[Row], prompts: Sequence[EncoderDecoderPrompt]) -> Sources:
        """Run the encoder; differentiable in the prompts' encoder vectors."""
        table, offsets = stack_prompts([prompt.encoder for prompt in prompts])
        rows = [Row(row.ids) for row in rows]
        layout = lay_out(rows, offsets=offsets, device=self.device)
        seen = layout.segments != PAD
        embeds = embed(layout, self.model.get_input_embeddings(), table)
        states = self.model.get_encoder()(inputs_embeds=embeds, attention_mask=seen.long()).last_hidden_state
        padding = layout.rows * layout.width - layout.tokens
        return Sources(states, seen, tuple(row.total for row in rows), padding)

    def decode(
        self, sources: Sources, targets: Sequence[Target], prompts: Sequence[EncoderDecoderPrompt]
    ) -> list[Decoded]:
        """Run decoder rows; `prompts` are those of the encoder's rows. One pass for each length of what is given."""
        groups: dict[tuple[int, int], list[int]] = {}
        for place, target in enumerate(targets):
            prompt = prompts[target.source]
            lengths = tuple(0 if given is None else given.length for given in (prompt.prefix, prompt.cross))
            groups.setdefault(lengths, []).append(place)  # type: ignore[arg-type]  # two of them
        return [self._pass(sources, targets, tuple(places), prompts) for places in groups.values()]

    def hidden(
        self, sources: Sources, targets: Sequence[Target], prompts: Sequence[EncoderDecoderPrompt]
    ) -> tuple[Tensor, list[Decoded]]:
        """Hidden states [N, H] at all targets' reads, in the targets' order, and the passes they come from."""
        passes = self.decode(sources, targets, prompts)
        order = [place for done in passes for place in done.rows for _ in targets[place].reads]
        found = torch.cat([done.hidden for done in passes])
        if len(passes) > 1:
            back = sorted(range(len(order)), key=order.__getitem__)
            found = found[torch.tensor(back, device=found.device)]
        return found, passes

    def keys_of(self, text: Sequence[int], ids: Sequence[int]) -> PrefixKV:
        """Keys and values [2, L, G, len(ids), D] that the decoder makes of tokens behind its start where the encoder
        reads `text`."""
        sides = [EncoderDecoderPrompt()]
        (done,) = self.decode(self.encode([Row(tuple(text))], sides), [Target(0, tuple(ids))], sides)
        return PrefixKV(done.keys_and_values(cross=False)[:, :, 0, :, len(self.start) :])

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] float32 from hidden states [N, H]."""
        logits: Tensor = self.model.get_output_embeddings()(self._scaled(hidden)).float()
        bias = getattr(self.model, "final_logits_bias", None)
        return logits if bias is None else logits + bias.float()

    def log_probs(self, hidden: Tensor, pick: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities [M] float32 of `tokens` [M] at hidden states [N, H], token m at row `pick[m]`; no logits
        are kept."""
        head = self.model.get_output_embeddings()
        bias = getattr(self.model, "final_logits_bias", None)  # [1, V]
        own = None if bias is None else bias[0].to(head.weight.dtype)
        whole = own if head.bias is None else head.bias if own is None else head.bias + own
        return token_log_probs(self._scaled(hidden), head.weight, whole, pick, tokens)

    def cross_mask(self, seen: Tensor) -> Tensor:
        """Which of the encoder's tokens decoder rows see, [W, S] bool, in the form the model wants: [W, 1, 1, S]."""
        if self.model.config._attn_implementation != "eager":
            return seen[:, None, None]
        zero = torch.zeros((), dtype=self.model.dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(self.model.dtype).min)[:, None, None]

    def _pass(
        self,
        sources: Sources,
        targets: Sequence[Target],
        places: tuple[int, ...],
        prompts: Sequence[EncoderDecoderPrompt],
    ) -> Decoded:
        chosen = [targets[place] for place in places]
        of = [prompts[target.source] for target in chosen]
        table, offsets = stack_prompts([prompt.decoder for prompt in of])
        heads = [self.head_length(prompt) for prompt in of]
        rows = [
            Row((*(-1 - j for j in range(head - len(self.start))), *self.start, *target.tokens))
            for head, target in zip(heads, chosen, strict=True)
        ]
        layout = lay_out(rows, offsets=offsets, device=self.device)
        index = [target.source for target in chosen]
        whole = index == list(range(sources.states.shape[0]))
        pick = torch.tensor(index, device=self.device)
        states, dtype = sources.states, sources.states.dtype
        if self.spread and not whole:
            states = states.index_select(0, pick)
        shared = None if whole or self.spread else pick
        cache = pass_cache(self.layers, _given(of, "prefix", dtype), _given(of, "cross", dtype), shared)
        seen = sources.seen if whole else sources.seen[pick]
        before = 0 if of[0].cross is None else of[0].cross.length
        hidden = self.decoder(
            inputs_embeds=embed(layout, self.words, table),
            encoder_hidden_states=states,
            encoder_attention_mask=self.cross_mask(torch.nn.functional.pad(seen, (before, 0), value=True)),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # [W, T, H]
        flat = [
            i * layout.width + head - 1 + column
            for i, (head, target) in enumerate(zip(heads, chosen, strict=True))
            for column in target.reads
        ]
        read = torch.tensor(flat, device=self.device)
        return Decoded(places, hidden.reshape(-1, hidden.shape[-1]).index_select(0, read), cache)

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden * (hidden.shape[-1] ** -0.5) if self.scaled else hidden


def _given(prompts: Sequence[EncoderDecoderPrompt], side: str, dtype: torch.dtype) -> list[PrefixKV] | None:
    """Keys and values of each row on one side, the same object for the same prompt; None where there are none."""
    made: dict[int, PrefixKV] = {}
    found = []
    for prompt in prompts:
        given: PrefixKV | None = getattr(prompt, side)
        if given is None or not given.length:
            return None
        found.append(made.setdefault(id(given), PrefixKV(given.data.to(dtype))))
    return found
