"""What is asked of an encoder-decoder's rows: labels' words, or an answer's tokens, each behind the decoder's start.

The encoder runs once for a row. Words are decoder rows of their own; words that begin alike share one, and words of a
single token need none beside the start itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.backbone.families.seq2seq_forward import Seq2SeqForward, Target, parts_of_prompt
from app.backbone.rows import Row
from app.backbone.score_plan import ScorePlan
from app.backbone.soft_prompt import SoftPrompt
from app.backbone.verbalizer import Verbalizer

Asked = Verbalizer | Sequence[int] | None
"""Labels, an answer's tokens, or nothing but what comes first."""


@dataclass(frozen=True)
class TargetPlan:
    """Decoder rows for a batch, and how what is read of them adds up.

    targets            all decoder rows
    plan               reads count over the targets' reads in order; labels first, then answers; `plan.trunks` [B] is
                       where each row's first token is told
    answers            how many tokens each answer has, in the order of the rows that have one
    """

    targets: tuple[Target, ...]
    plan: ScorePlan
    answers: tuple[int, ...]


def score_rows(
    forward: Seq2SeqForward,
    rows: Sequence[Row],
    prompts: Sequence[SoftPrompt | None],
    asked: Sequence[Verbalizer | Sequence[int]],
) -> list[Tensor]:
    """What each row is asked for, float32 and differentiable in the prompts: [K] for the labels of a verbalizer,
    [len(answer)] for an answer."""
    sides = [parts_of_prompt(prompt) for prompt in prompts]
    plan = plan_targets(asked, forward.device)
    hidden, _ = forward.hidden(forward.encode(rows, sides), plan.targets, sides)
    log_probs = forward.log_probs(hidden, plan.plan.pick, plan.plan.tokens)
    total = sum(plan.answers)
    of_labels, of_answers = log_probs.split([len(plan.plan.pick) - total, total])
    labels, answers = iter(plan.plan.add_up(of_labels)), iter(of_answers.split(list(plan.answers)))
    return [next(labels) if isinstance(of, Verbalizer) else next(answers) for of in asked]


def plan_targets(asked: Sequence[Asked], device: torch.device) -> TargetPlan:
    """Decoder rows for a batch of rows, row i asked for `asked[i]`."""
    book = _Book()
    trunks = [book.row(i, of) for i, of in enumerate(asked)]
    pick: list[int] = []
    tokens: list[int] = []
    words: list[int] = []
    labels: list[int] = []
    base = 0
    for i, of in enumerate(asked):
        if isinstance(of, Verbalizer):
            for label, word in of.flat:
                pick += [book.read_at[i, word[:t]] for t in range(len(word))]
                tokens += word
                words += [len(labels)] * len(word)
                labels.append(base + label)
            base += len(of.labels)
    for i, of in enumerate(asked):
        if of is not None and not isinstance(of, Verbalizer):
            pick += range(trunks[i], trunks[i] + len(of))
            tokens += of

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    sizes = tuple(len(of.labels) for of in asked if isinstance(of, Verbalizer))
    answers = tuple(len(of) for of in asked if of is not None and not isinstance(of, Verbalizer))
    plan = ScorePlan(tensor([]), tensor(pick), tensor(tokens), tensor(words), tensor(labels), tensor(trunks), sizes)
    return TargetPlan(tuple(book.targets), plan, answers)


class _Book:
    """Decoder rows as they are added. `read_at[i, begun]`: where row i's next token behind the tokens `begun` is told,
    counted over all reads."""

    def __init__(self) -> None:
        self.targets: list[Target] = []
        self.read_at: dict[tuple[int, tuple[int, ...]], int] = {}
        self._reads = 0

    def row(self, source: int, asked: Asked) -> int:
        """Add what a row needs; returns where its first token is told."""
        first = self._reads
        if asked is None:
            self._add(Target(source))
        elif isinstance(asked, Verbalizer):
            self._words(source, asked)
        else:
            self._add(Target(source, tuple(asked[:-1]), tuple(range(len(asked)))))
        return first

    def _words(self, source: int, verbalizer: Verbalizer) -> None:
        """The longest beginnings first: each tells all shorter ones that nobody has told yet."""
        for begun in sorted({word[:-1] for _, word in verbalizer.flat}, key=lambda word: (-len(word), word)):
            if (source, begun) in self.read_at:
                continue
            columns = [t for t in range(len(begun) + 1) if (source, begun[:t]) not in self.read_at]
            for offset, t in enumerate(columns):
                self.read_at[source, begun[:t]] = self._reads + offset
            self._add(Target(source, begun, tuple(columns)))

    def _add(self, target: Target) -> None:
        self.targets.append(target)
        self._reads += len(target.reads)
