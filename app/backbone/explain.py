"""What a prompt's vectors look like in the language of the backbone: their length, and the words nearest to each.

A vector is no word, and the nearest one may be far away: the cosine says how far, the distance how far in units of a
typical word embedding (Lester et al. 2021, section 7, and Khashabi et al. 2022 on how far one may trust such readings).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from app.backbone.backbone import Backbone
from app.backbone.soft_prompt import SoftPrompt, parts_of, vectors_of

_WORDS_AT_ONCE = 32_768  # rows of the embedding compared in one go


@dataclass(frozen=True)
class NearWord:
    """One word of the vocabulary. `cosine` of the angle between it and the vector; Euclidean `distance` in units of the
    median word's norm."""

    token: int
    text: str
    cosine: float
    distance: float


@dataclass(frozen=True)
class VectorView:
    """One vector: its place in the prompt, its norm in units of the median word's, and its nearest words."""

    index: int
    norm: float
    words: tuple[NearWord, ...]


@torch.no_grad()
def explain_vectors(backbone: Backbone, prompt: SoftPrompt | None, *, words: int = 5) -> list[VectorView]:
    """Every vector of the prompt with its `words` nearest words by cosine, reserved tokens left out; [] where it has no
    vectors (hand-written prompts, keys and values)."""
    vectors = vectors_of(prompt)
    if vectors is None:
        return []
    vectors = vectors.detach().to(backbone.device, torch.float32)  # [P, H]
    unit = backbone.embedding_norm
    cosines, tokens = _nearest(backbone, vectors, words)
    near = backbone.embedding_weight[tokens].float()  # [P, K, H]
    distances = (near - vectors[:, None]).norm(dim=-1) / unit  # [P, K]
    norms = (vectors.norm(dim=1) / unit).tolist()
    return [
        VectorView(
            index,
            norm,
            tuple(
                NearWord(token, backbone.tokenizer.decode([token]), cosine, distance)
                for token, cosine, distance in zip(*row, strict=True)
            ),
        )
        for index, (norm, row) in enumerate(
            zip(norms, zip(tokens.tolist(), cosines.tolist(), distances.tolist(), strict=True), strict=True)
        )
    ]


def prefix_norms(prompt: SoftPrompt | None) -> list[list[float]]:
    """Per virtual token the norm of its keys and values over all layers, for prompts of keys and values: [P][2]."""
    parts = [part for part in parts_of(prompt) if part.dim() == 5]
    if not parts:
        return []
    norms: Tensor = parts[0].float().pow(2).sum(dim=(1, 2, 4)).sqrt()  # [2, P]
    found: list[list[float]] = norms.T.tolist()
    return found


def _nearest(backbone: Backbone, vectors: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """(cosines, tokens), both [P, K], nearest first."""
    weight = backbone.embedding_weight[: backbone.tokenizer.vocab_size]
    wanted = F.normalize(vectors, dim=1)
    scores: list[Tensor] = []
    for part in weight.split(_WORDS_AT_ONCE):
        scores.append(wanted @ F.normalize(part.float(), dim=1).T)
    cosines = torch.cat(scores, dim=1)  # [P, V]
    reserved = [token for token in backbone.tokenizer.reserved if token < cosines.shape[1]]
    cosines[:, reserved] = -torch.inf
    best = cosines.topk(min(words, cosines.shape[1] - len(reserved)), dim=1)
    return best.values, best.indices
