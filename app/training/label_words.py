"""Label words found by the model itself: which next words the frozen backbone already uses to tell the labels apart.

The rows are read without any learned vector. For each label, words that the model expects more after its rows than
after the others' are candidates (Schick et al. 2020, PETAL); among them the set with the lowest cross-entropy on the
rows is built up greedily (in the spirit of Gao et al. 2021, LM-BFF). Every candidate is one token, so one forward over
the rows answers for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.backbone import Backbone, BackboneTokenizer
from app.backbone.generation import next_logits
from app.training.data import Example
from app.training.examples import Encoder, sample_rows
from app.training.objective import eval_batches

ROWS = 512
"""Training rows looked at, labels in proportion."""

CANDIDATES = 48
"""Words of each label that are tried."""

PLAUSIBLE = 2000
"""A candidate is among this many most expected words after its label's rows."""

WORDS = 3
"""Most words of a label."""


@torch.no_grad()
def search_label_words(
    backbone: Backbone, encoder: Encoder, labels: Sequence[str], examples: Sequence[Example]
) -> dict[str, tuple[str, ...]]:
    """Up to WORDS words for each label, no word for two, best first. `encoder` has a template without slots and no
    verbalizer; `examples` carry labels.

    Raises ValueError when a label has no row, ContextTooLong where the template leaves no room for any.
    """
    rows = sample_rows(examples, ROWS, seed=0)
    of_row = torch.tensor([labels.index(str(example.label)) for example in rows])  # [N]
    if set(of_row.tolist()) != set(range(len(labels))):
        raise ValueError("a label without a row has no words to find")
    log_probs = _expectations(backbone, encoder, rows)  # [N, V]
    means = torch.stack([log_probs[of_row == k].mean(0) for k in range(len(labels))])  # [K, V]
    pools = [_pool(encoder, means, k) for k in range(len(labels))]
    chosen = _choose(log_probs, of_row, pools)
    return {label: tuple(_word(encoder, token) for token in chosen[k]) for k, label in enumerate(labels)}


def _expectations(backbone: Backbone, encoder: Encoder, rows: Sequence[Example]) -> Tensor:
    """Log-probability of every next token after each row, [N, V] float32 on the CPU."""
    encoded = [encoder.encode_next(example) for example in rows]
    found = torch.empty(len(encoded), backbone.vocab_size)
    for places in eval_batches(encoded):
        logits = next_logits(backbone, [encoded[place].row for place in places])
        found[places] = logits.float().log_softmax(-1).cpu()
    return found


def _pool(encoder: Encoder, means: Tensor, label: int) -> list[int]:
    """Tokens that the model expects after this label's rows more than after the others', words only, best first."""
    others = torch.cat((means[:label], means[label + 1 :])).logsumexp(0) - torch.tensor(len(means) - 1.0).log()
    contrast = means[label] - others
    plausible = means[label].topk(min(PLAUSIBLE, means.shape[1])).indices
    ranked = plausible[contrast[plausible].argsort(descending=True, stable=True)].tolist()
    pool: list[int] = []
    for token in ranked:
        if _is_word(encoder, token):
            pool.append(token)
        if len(pool) == CANDIDATES:
            break
    return pool


def _choose(log_probs: Tensor, of_row: Tensor, pools: Sequence[Sequence[int]]) -> list[list[int]]:
    """Per label the tokens whose log-sum-exp gives the lowest cross-entropy over the rows: first one word each, turned
    over until nothing improves, then more words one by one while they help."""
    chosen: list[list[int]] = [[] for _ in pools]
    for k, pool in enumerate(pools):
        chosen[k] = [next(token for token in pool if all(token not in of for of in chosen))]
    best = _loss(log_probs, of_row, chosen)
    improved = True
    while improved:
        improved = False
        for k, pool in enumerate(pools):
            for token in pool:
                trial = [*chosen[:k], [token], *chosen[k + 1 :]]
                loss = _loss(log_probs, of_row, trial) if _free(token, chosen) else best
                if loss < best - 1e-6:
                    best, chosen, improved = loss, trial, True
    for _ in range(WORDS - 1):
        for k, pool in enumerate(pools):
            trials = [[*chosen[:k], [*chosen[k], token], *chosen[k + 1 :]] for token in pool if _free(token, chosen)]
            losses = [_loss(log_probs, of_row, trial) for trial in trials]
            if losses and min(losses) < best - 1e-4:
                best, chosen = min(losses), trials[losses.index(min(losses))]
    return chosen


def _free(token: int, chosen: Sequence[Sequence[int]]) -> bool:
    return all(token not in of for of in chosen)


def _loss(log_probs: Tensor, of_row: Tensor, chosen: Sequence[Sequence[int]]) -> float:
    scores = torch.stack([log_probs[:, of].logsumexp(1) for of in chosen], dim=1)  # [N, K]
    return float(torch.nn.functional.cross_entropy(scores, of_row))


def _is_word(encoder: Encoder, token: int) -> bool:
    """Letters only, with the space that the template's end wants, and one token again when it is encoded."""
    tokenizer = encoder.tokenizer
    if token in tokenizer.reserved:
        return False
    text = _decode(tokenizer, token)
    if tokenizer.family == "seq2seq":  # what a decoder writes first begins a text, whatever space its token shows
        bare = text.strip()
        return len(bare) > 1 and bare.isalpha() and tokenizer.encode_answer(bare) == [token]
    bare = text.removeprefix(encoder.template.separator)
    if len(text) - len(bare) != len(encoder.template.separator) or len(bare) < 2 or not bare.isalpha():
        return False
    return tokenizer.encode_continuation(text) == [token]


def _word(encoder: Encoder, token: int) -> str:
    return _decode(encoder.tokenizer, token)


def _decode(tokenizer: BackboneTokenizer, token: int) -> str:
    """The token's text as it goes on after other text: decoders may drop a space at the very beginning."""
    (anchor,) = tokenizer.encode_text(":")[:1]
    return tokenizer.decode([anchor, token]).removeprefix(tokenizer.decode([anchor]))
