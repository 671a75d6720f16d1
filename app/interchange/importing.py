"""What is given becomes a version: an adapter or a hand-written prompt is checked against the running backbone, asked a
few texts, and published in one step with where it came from.

The answers to those texts are its golden outputs, as a trainer's would be: every replica replays them before it serves.
"""

from __future__ import annotations

import uuid
from functools import partial

import torch
from anyio import to_thread

from app.backbone import Backbone
from app.backbone.soft_prompt import place
from app.engine import Answer, Ask, EngineService
from app.errors import ChorusError, EngineFailure, InvalidPrompt
from app.interchange.adapter_files import AdapterFiles
from app.interchange.drafting import Draft, Wanted, prepare
from app.interchange.peft_export import to_adapter
from app.registry import Registry
from app.training.golden import golden_inputs, golden_outputs
from prompt_store import Golden, TaskNotFound, TaskSpec, Version

GOLDEN_S = 60.0


class Interchange:
    """Adapters and hand-written prompts into the registry, and adapters out of it, on one running backbone."""

    def __init__(self, backbone: Backbone, registry: Registry, engine: EngineService) -> None:
        self._backbone, self._registry, self._engine = backbone, registry, engine

    async def take_in(self, wanted: Wanted) -> Version:
        """Publish what is given as the task's next version.

        Raises:
            CapabilityMissing, InvalidPrompt, TooLarge: the adapter, as `Adapter.read` and `to_prompt` do.
            InvalidTemplate, InvalidVerbalizer: wording that does not fit the adapter, the task or the backbone; a slot
                in a hand-written prompt.
            TaskNotFound: there is no such task, and none is to be created.
            StoreError: as `PromptStore.publish`.
        """
        spec = await self._spec(wanted)
        draft = await to_thread.run_sync(partial(prepare, wanted, spec, self._backbone))
        golden = await self._golden(draft)
        return await self._registry.publish(
            task=wanted.task,
            meta=draft.meta.model_copy(update={"golden": golden}),
            tensors=draft.tensors,
            publication=f"import-{uuid.uuid4().hex}",
            alias=wanted.alias,
            spec=draft.spec,
        )

    async def give_out(self, task: str, number: int) -> AdapterFiles:
        """A version as an adapter. Raises as `Registry.resolve_version`, and CapabilityMissing as `to_adapter`."""
        prompt = await self._registry.resolve_version(f"{task}@{number}")
        return await to_thread.run_sync(to_adapter, prompt, self._backbone)

    async def _golden(self, draft: Draft) -> tuple[Golden, ...]:
        """Labels are scored as any request's; of a text the margins are wanted too, which no request is told."""
        prompt, learned = draft.prompt, draft.prompt.learned
        if prompt.verbalizer is None:
            placed = None if learned is None else place(learned, self._backbone.device, torch.float32)
            return await self._engine.between_steps(lambda: golden_outputs(self._backbone, draft.encoder, placed))
        inputs = golden_inputs(prompt.template.fields)
        asks = [Ask(prompt, fields, prompt.decoding) for fields in inputs]
        answers = await self._engine.answer_together(asks, timeout_s=GOLDEN_S)
        return tuple(_scored(fields, answer) for fields, answer in zip(inputs, answers, strict=True))

    async def _spec(self, wanted: Wanted) -> TaskSpec | None:
        try:
            return self._registry.task(wanted.task).spec
        except TaskNotFound:
            await self._registry.refresh()  # made a moment ago, elsewhere
        try:
            return self._registry.task(wanted.task).spec
        except TaskNotFound:
            if not wanted.create_task:
                raise
            return None


def _scored(fields: dict[str, str], answer: Answer | ChorusError) -> Golden:
    if isinstance(answer, EngineFailure):
        raise InvalidPrompt("the model does not answer with this prompt") from answer
    if isinstance(answer, ChorusError):
        raise answer
    return Golden(input=fields, scores=None if answer.log_scores is None else dict(answer.log_scores))
