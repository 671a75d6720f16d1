"""Evaluation: loss on text kept back, and zero-shot accuracy on dev rows in given wordings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from pretraining.model import losses
from pretraining.packing import KEPT_BACK, read_manifest
from pretraining.recipe import Probe, Recipe
from pretraining.rows import Purpose, RowReader
from pretraining.shards import PackedReader
from pretraining.tokenizer import BOS, PAD

BATCH_ROWS = 16
WINDOW = 512
MAX_WINDOWS = 64
Ids = Sequence[int]


def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe, work: Path, data: Path) -> dict[str, Any]:
    """`kept_back`: nats a token and bits a byte, by corpus; `probes`: accuracy and loss, by data set. JSON."""
    was_training = model.training
    model.eval()
    try:
        return {
            "kept_back": kept_back_losses(model, tokenizer, work, min(WINDOW, recipe.shape.context)),
            "probes": [probe_scores(model, tokenizer, probe, RowReader(data, ())) for probe in recipe.probes],
        }
    finally:
        model.train(was_training)


@torch.no_grad()
def kept_back_losses(
    model: LlamaForCausalLM, tokenizer: Tokenizer, work: Path, window: int
) -> dict[str, dict[str, float]]:
    """Of each corpus, over at most `MAX_WINDOWS` windows of `window` tokens."""
    result = {}
    for name, packed in read_manifest(work).items():
        count = min(MAX_WINDOWS, packed.tokens // (window + 1))
        if not name.endswith(KEPT_BACK) or not count:
            continue
        reader = PackedReader(work / "shards" / name, packed)
        nats = tokens = 0.0
        size = 0
        for at in range(count):
            ids = reader.window(at * (window + 1), window + 1)[0].astype("int64")
            row = torch.from_numpy(ids)[None].to(model.device)
            weights = (row[:, 1:] != BOS).float()
            found = losses(model, row, weights, torch.zeros_like(weights, dtype=torch.bool))
            nats += float(found.plain.sum())
            tokens += float(found.counted.sum())
            size += len(tokenizer.decode(ids[1:].tolist()).encode())
        result[name.removesuffix(KEPT_BACK)] = {
            "nats_per_token": nats / tokens,
            "bits_per_byte": nats / math.log(2) / size,
        }
    return result


def probe_scores(model: LlamaForCausalLM, tokenizer: Tokenizer, probe: Probe, rows: RowReader) -> dict[str, Any]:
    """One probe: how often the right label's word is the likeliest of the labels' words, and the mean of -log of its
    share among them, in nats. Labels without a word are left out."""
    asked = [row for row in rows.read(probe.data, "dev", Purpose.EVALUATE) if row["label"] in probe.words]
    asked = asked[: probe.rows]
    labels = list(probe.words)
    prompts = [encode_prompt(tokenizer, probe.wording.format_map(row)) for row in asked]
    words = [tokenizer.encode(probe.words[label], add_special_tokens=False).ids for label in labels]
    scores = label_scores(model, prompts, words)
    right = torch.tensor([labels.index(row["label"]) for row in asked])
    return {
        "data": probe.data,
        "wording": probe.wording,
        "rows": len(asked),
        "accuracy": float((scores.argmax(1) == right).float().mean()),
        "loss": float(F.cross_entropy(scores, right)),
    }


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    return [BOS, *tokenizer.encode(text, add_special_tokens=False).ids]


@torch.no_grad()
def label_scores(model: LlamaForCausalLM, prompts: Sequence[Ids], words: Sequence[Ids]) -> Tensor:
    """log p(word | prompt), summed over the word's tokens. `[rows, words]` float32, on the CPU."""
    single = all(len(word) == 1 for word in words)
    scores = torch.empty(len(prompts), len(words))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # rows of one length need no padding
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        if single:
            last = _log_probabilities(model, [prompts[row] for row in rows], 1)[:, 0]
            scores[rows] = last[:, [word[0] for word in words]]
            continue
        for column, word in enumerate(words):
            found = _log_probabilities(model, [[*prompts[row], *word] for row in rows], len(word) + 1)[:, :-1]
            scores[rows, column] = found.gather(2, torch.tensor(word).expand(len(rows), -1)[..., None]).sum((1, 2))
    return scores


def _log_probabilities(model: LlamaForCausalLM, texts: Sequence[Ids], last: int) -> Tensor:
    """Of the token after each of the last `last` tokens of each text. `[texts, last, V]` float32, on the CPU.

    Padding stands behind the texts, where a causal model does not look.
    """
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in texts], device=model.device)
    hidden = model.model(input_ids=ids).last_hidden_state
    places = torch.tensor([[len(text) - last + at for at in range(last)] for text in texts], device=model.device)
    chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return F.linear(chosen, model.lm_head.weight).float().log_softmax(-1).cpu()


def summary(result: Mapping[str, Any]) -> str:
    """One line for people."""
    kept = [f"{name} {values['bits_per_byte']:.3f} bits/byte" for name, values in result["kept_back"].items()]
    probes = [f"{probe['data']} {100 * probe['accuracy']:.1f} %" for probe in result["probes"]]
    return "; ".join((*kept, *probes))
