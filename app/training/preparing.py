"""From a plan to what learns: rows encoded, words looked up or searched for, a learner at its start.

The members of a sweep differ in little, so what they have in common is made once: encoded rows, searched words, how
long answers are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeVar

from app.backbone import Backbone, compile_verbalizer, default_bos, parse_template
from app.training.data import Example
from app.training.evaluate import Evaluator
from app.training.examples import Encoded, Encoder
from app.training.label_words import search_label_words
from app.training.methods import METHODS, LearnedMethod, Learner, MethodConfig
from app.training.plan import Plan
from app.training.schedule import Schedule, make_schedule
from app.training.sources import RegistrySources
from app.training.surroundings import SAMPLE_ROWS, gather
from prompt_store import PromptStore

T = TypeVar("T")
DEV_SAMPLE_SEED = 0
"""Dev rows are sampled alike whatever a run's seed is, so that the scores of different seeds can be compared."""


class Patience(Protocol):
    """Calls again while what is asked for is out of reach, for a while."""

    def __call__(self, call: Callable[[], T]) -> T: ...


@dataclass
class Preparation:
    """What the runs of one attempt begin with. `train` are the training rows; `patiently` makes calls to the store."""

    backbone: Backbone
    store: PromptStore
    max_context: int
    stop: threading.Event
    train: Sequence[Example]
    patiently: Patience
    _words: dict[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    _encoded: dict[tuple[object, ...], list[Encoded]] = field(default_factory=dict)

    def encoder(self, plan: Plan) -> Encoder:
        backbone, method = self.backbone, METHODS[plan.method.type]
        template = parse_template(plan.template)
        beside = method.decoder_tokens(plan.method, template, backbone.family)
        encoder = Encoder(
            backbone.tokenizer,
            method.wording(plan.method, template, backbone.family),
            default_bos(backbone.tokenizer),
            None,
            min(self.max_context, backbone.max_positions) - beside,
        )
        words: Mapping[str, Sequence[str]] | None = plan.verbalizer
        if plan.search_words:
            words = self._search(replace(encoder, template=encoder.template.without_slots()), plan)
        return encoder if words is None else replace(encoder, verbalizer=compile_verbalizer(backbone.tokenizer, words))

    def _search(self, bare: Encoder, plan: Plan) -> Mapping[str, Sequence[str]]:
        source = bare.template.source
        if source not in self._words:
            self._words[source] = search_label_words(self.backbone, bare, plan.spec.labels or (), list(self.train))
        return self._words[source]

    def encode(self, encoder: Encoder) -> list[Encoded]:
        """The training rows. Raises ContextTooLong where the prompt leaves no room for them."""
        words = None if encoder.verbalizer is None else tuple(encoder.verbalizer.words)
        key = (encoder.template.source, words, encoder.max_tokens)
        if key not in self._encoded:
            self._encoded[key] = [encoder.encode(example) for example in self.train]
        return self._encoded[key]

    def schedule(self, plan: Plan, rows: int) -> Schedule:
        virtual = parse_template(plan.template).num_virtual_tokens
        return make_schedule(plan.hyperparameters, rows=rows, num_virtual_tokens=virtual)

    def evaluator(self, plan: Plan, encoder: Encoder) -> Evaluator:
        return Evaluator(
            backbone=self.backbone,
            encoder=encoder,
            metric=plan.spec.metric,
            max_tokens=min(256, max(8, self._longest_output * 5 // 4)),
            seed=DEV_SAMPLE_SEED,
        )

    @cached_property
    def _longest_output(self) -> int:
        """In tokens, of the first rows."""
        tokenizer = self.backbone.tokenizer
        outputs = (example.output for example in self.train[:SAMPLE_ROWS] if example.output)
        return max((len(tokenizer.encode_text(output)) for output in outputs), default=0)

    def begin(
        self, plan: Plan, schedule: Schedule, encoder: Encoder, encoded: Sequence[Encoded]
    ) -> tuple[MethodConfig, Learner]:
        """The settled method and a learner at its start."""
        method = METHODS[plan.method.type]
        assert isinstance(method, LearnedMethod)
        around = gather(
            plan.method,
            schedule,
            self.backbone,
            encoded,
            encoder.verbalizer,
            sources=RegistrySources(self.store, self.backbone, plan.task),
            stop=self.stop.is_set,
        )
        settled = method.settle(plan.method, around)
        return settled, method.begin(settled, around)
