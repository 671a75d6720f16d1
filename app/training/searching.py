"""The second way to a version: candidates are judged instead of vectors learned by gradient, within a budget.

A search is a function of its judgements. So a checkpoint holds those alone, and a search that goes on after a kill runs
anew from its beginning, is given what it was told before, and comes to where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from app.backbone import LoadedPrompt, Template
from app.backbone.soft_prompt import SoftPrompt, map_parts, parts_of, place, to_tensors
from app.errors import CapabilityMissing, ContextTooLong
from app.training.checkpoints import Checkpoints
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.methods import MethodConfig, SearchedMethod
from app.training.methods.base import Candidate, Judged
from app.training.runs import Diverged, Interrupted, Judgement, Outcome
from app.training.trainer import Listener

WORST = Judgement(float("-inf"), float("inf"))
"""Of a candidate that does not fit the context."""

_DEV, _TRAIN = "dev", "train"


class _BudgetSpent(Exception):
    """Ends a search from within."""


class Search:
    """One search, of one attempt. `template` has no slots; `examples` are the training rows. `read` reads another
    version by its reference; without it none can be asked for."""

    def __init__(
        self,
        method: SearchedMethod,
        config: MethodConfig,
        template: Template,
        examples: Sequence[Example],
        dev: Sequence[Example],
        evaluator: Evaluator,
        *,
        listener: Listener,
        checkpoints: Checkpoints,
        checkpoint_s: float,
        read: Callable[[str], LoadedPrompt] | None = None,
    ) -> None:
        self.template = template
        self.rows: Sequence[tuple[str, str | None]] = [
            (" ".join(example.fields.values()), example.label) for example in examples
        ]
        verbalizer = evaluator.encoder.verbalizer
        self.label_words: Sequence[str] = [] if verbalizer is None else [word for of in verbalizer.words for word in of]
        self._method = method
        self._config = config
        self._evaluator = evaluator
        self._rows_of = {_DEV: dev, _TRAIN: examples}
        self._listener = listener
        self._checkpoints = checkpoints
        self._checkpoint_s = checkpoint_s
        self._read = read
        self._budget = method.evaluations(config)
        self._told: dict[str, Judgement] = {}  # of earlier attempts
        self._seconds = 0.0
        self._known: dict[str, Judgement] = {}
        self._judged: list[Judged] = []  # on the dev rows, in order
        self._steps: list[int] = []  # behind which they were

    def run(self) -> tuple[Outcome, Candidate]:
        """Judge until the method is done or the budget used up; what the method picks of it all.

        Raises Interrupted when the listener wants to stop, Diverged when no candidate could be judged, and what the
        method raises.
        """
        self._resume()
        self._began = self._saved = time.monotonic()
        self._listener.began(len(self._told))
        with suppress(_BudgetSpent):
            self._method.search(self._config, self)
        self._save()
        if not self._judged:
            raise Diverged("no candidate fits the context")
        number, details = self._method.pick(self._config, self._judged)
        candidate, judgement = self._judged[number]
        tensors = {} if candidate.learned is None else to_tensors(_on_host(candidate.learned))
        seconds = self._seconds + time.monotonic() - self._began
        step, steps = self._steps[number], len(self._known)
        return Outcome(tensors, judgement, step, steps, seconds, stopped_early=False, details=details), candidate

    def judge(self, candidate: Candidate) -> Judgement:
        """By the task's metric on the dev rows."""
        return self._ask(_DEV, candidate)

    def loss(self, candidate: Candidate) -> float:
        """On the training rows."""
        return self._ask(_TRAIN, candidate).loss

    def version(self, reference: str) -> LoadedPrompt:
        """Another version. Raises CapabilityMissing where there is no registry to ask, and InvalidPrompt."""
        if self._read is None:
            raise CapabilityMissing("no registry is at hand to read another version from", param="method")
        loaded = self._read(reference)
        if loaded.learned is None:
            return loaded
        return replace(loaded, learned=place(loaded.learned, self._evaluator.backbone.device, torch.float32))

    def _ask(self, rows: str, candidate: Candidate) -> Judgement:
        name = f"{rows} {_digest(candidate)}"
        known = self._known.get(name)
        if known is not None:
            return known
        if len(self._known) >= self._budget:
            raise _BudgetSpent
        judgement = self._told.get(name) or self._evaluate(rows, candidate)
        if judgement is None:
            return WORST
        self._known[name] = judgement
        better = False
        if rows == _DEV:
            better = all(judgement.rank > one.judgement.rank for one in self._judged)
            self._judged.append(Judged(candidate, judgement))
            self._steps.append(len(self._known))
        if name not in self._told:
            self._tell(rows, judgement, better=better)
        return judgement

    def _evaluate(self, rows: str, candidate: Candidate) -> Judgement | None:
        encoder = replace(
            self._evaluator.encoder,
            template=candidate.template,
            bos=candidate.bos or self._evaluator.encoder.bos,
        )
        metric = self._evaluator.metric if rows == _DEV else "loss"
        evaluator = replace(self._evaluator, encoder=encoder, metric=metric)
        try:
            return evaluator.quick_judge(self._rows_of[rows])(candidate.learned)
        except ContextTooLong as error:
            self._listener.warned(f"left out: {error.message}")
            return None

    def _tell(self, rows: str, judgement: Judgement, *, better: bool) -> None:
        step = len(self._known)
        best = max((one.judgement for one in self._judged), key=lambda one: one.rank, default=None)
        self._listener.stepped(step, judgement.loss, best)
        if rows == _DEV:
            self._listener.evaluated(step, judgement, best=better)
        stopping = self._listener.stop_requested()
        if stopping or time.monotonic() - self._saved >= self._checkpoint_s:
            self._save()
            self._saved = time.monotonic()
        if stopping:
            raise Interrupted

    def _save(self) -> None:
        known = [[name, one.score, one.loss, one.lower_is_better] for name, one in self._known.items()]
        seconds = self._seconds + time.monotonic() - self._began
        try:
            self._checkpoints.save(len(known), {}, {"judged": known, "seconds": seconds})
        except OSError as error:
            self._listener.warned(f"the checkpoint of step {len(known)} could not be written: {error.strerror}")
        else:
            self._listener.saved(len(known))

    def _resume(self) -> None:
        found = self._checkpoints.load()
        if found is not None:
            _, state = found
            self._told = {name: Judgement(*of) for name, *of in state["judged"]}
            self._seconds = state["seconds"]


def _digest(candidate: Candidate) -> str:
    """Equal for candidates that are judged alike."""
    found = hashlib.sha256(f"{candidate.bos} {candidate.template.source}".encode())
    for part in parts_of(candidate.learned):
        found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _on_host(learned: SoftPrompt) -> SoftPrompt:
    return map_parts(learned, lambda part: part.detach().to("cpu", torch.float32, copy=True).contiguous())
