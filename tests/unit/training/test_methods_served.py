"""Every method from a request to a version, and all versions answering in one mixed batch as each does alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from app.backbone import Backbone, LoadedPrompt, encode_row, load_prompt
from app.engine import Event, Request, Sampling
from app.training.job import Job
from app.training.jobs import JobStore
from app.training.methods import METHODS
from app.training.session import Context, Session
from app.training.trainer import Interrupted
from prompt_store import PromptStore
from tests.engines import ends, make_engine, run, tokens_of
from tests.prompts import TEXTS
from tests.training_data import short_request

ASKED: dict[str, list[dict[str, Any]]] = {
    "prompt_tuning": [{"reparametrization": "none"}, {"init": "prompt", "init_prompt": "first"}],
    "residual": [{"bottleneck": 8}],
    "p_tuning": [{"encoder": "mlp"}, {"encoder": "lstm", "hidden_size": 16}],
    "prefix_tuning": [{}, {"reparametrization": "mlp", "init": "text", "init_text": "Is it good?"}],
    "multitask": [{"source": ["first@1"], "num_ranks": 2}],
    "spot": [{"init_prompt": "nearest"}],
    "hard": [{"max_evaluations": 6}, {"candidates": [["Review: ", ""], ["", " It was"]]}],
}
TEMPLATES = {"p_tuning": "<prompt:2>{text} I say<prompt:2> it is"}
EVERY = [(kind, options) for kind, of in ASKED.items() for options in of]
TOLERANCE = 1e-4


def asked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"method": {"type": kind} | options}
    if kind in TEMPLATES:
        found["template"] = TEMPLATES[kind]
    if kind == "hard":
        found["hyperparameters"] = {"seed": 1}
    return found


def loaded(store: PromptStore, backbone: Backbone, task: str) -> LoadedPrompt:
    version = store.get_version(task, 1)
    return load_prompt(version, store.load(version), backbone)


def answers(backbone: Backbone, prompts: dict[str, tuple[LoadedPrompt, str]]) -> dict[str, list[Event]]:
    """A label and a continuation of each prompt on its text, all in flight together."""
    engine = make_engine(backbone, max_rows=32, max_context=128)
    for name, (prompt, text) in prompts.items():
        digest = None
        if prompt.learned is not None:
            engine.load(prompt.digest, prompt.learned)
            digest = prompt.digest
        row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text})
        engine.submit(Request.single(f"{name} label", row, digest, 1e9, None, prompt.verbalizer))
        engine.submit(Request.single(f"{name} text", row, digest, 1e9, Sampling(max_tokens=6)))
    return run(engine)


def test_every_method_trains_publishes_and_answers_in_one_mixed_batch_as_alone(
    attempt: Callable[..., Job], store: PromptStore, backbone: Backbone
) -> None:
    assert set(ASKED) == set(METHODS) - {"prune"}  # which needs a version to begin from, see test_methods_prune.py
    attempt(task="first", method={"type": "prompt_tuning", "reparametrization": "none"})
    prompts: dict[str, tuple[LoadedPrompt, str]] = {}
    for place, (kind, options) in enumerate(EVERY):
        task = f"{kind.replace('_', '.')}-{place}"
        job = attempt(task=task, **asked(kind, options))
        assert job.status == "succeeded", job.error
        version = store.get_version(task, 1)
        assert version.meta.method["type"] == kind
        assert set(version.card[0].baselines) == {"majority", "zero_shot"}
        prompts[task] = loaded(store, backbone, task), TEXTS[place % len(TEXTS)]
    assert len(prompts) == len(EVERY)
    together = answers(backbone, prompts)
    assert set(ends(together).values()) <= {"label", "length", "stop"}
    for name, of in prompts.items():
        alone = answers(backbone, {name: of})
        scores = [events[f"{name} label"][-1].scores for events in (together, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE), name
        assert tokens_of(together[f"{name} text"]) == tokens_of(alone[f"{name} text"]), name
    labels = {name: together[f"{name} label"][-1].scores for name in prompts}
    assert len({tuple(round(float(score), 4) for score in of) for of in labels.values()}) > len(prompts) // 2


def test_references_are_pinned_and_the_nearest_is_named(attempt: Callable[..., Job], store: PromptStore) -> None:
    attempt(task="first", method={"type": "prompt_tuning", "reparametrization": "none"})
    attempt(task="second", method={"type": "prompt_tuning", "init": "prompt", "init_prompt": "first:prod"})
    assert store.get_version("second", 1).meta.method["init_prompt"] == "first@1"
    job = attempt(task="third", method={"type": "spot"})
    assert job.method["init_prompt"] == "nearest"
    assert store.get_version("third", 1).meta.method["init_prompt"] in ("first@1", "second@1")


@pytest.mark.parametrize(("kind", "options"), [pytest.param(*one, id=f"{n}-{one[0]}") for n, one in enumerate(EVERY)])
def test_every_method_goes_on_after_a_kill_bit_for_bit(
    kind: str,
    options: dict[str, Any],
    context: Context,
    jobs: JobStore,
    attempt: Callable[..., Job],
    store: PromptStore,
) -> None:
    attempt(task="first", method={"type": "prompt_tuning", "reparametrization": "none"})
    wanted = {"task": "whole", "publish": {"when": "never"}, **asked(kind, options)}  # no source for the other
    attempt(**wanted)
    job, _ = jobs.submit(short_request(**(wanted | {"task": "broken"})))
    for place in range(2):  # stopped behind its first step, then behind the next
        context.stop.set()
        with pytest.raises(Interrupted):
            Session(context, job.id, context.records.claim(job.id, "here")).run()
        assert context.records.move(job.id, "queued", attempt=place + 1) == "moved"
        context.stop.clear()
    Session(context, job.id, context.records.claim(job.id, "here")).run()
    assert jobs.get(job.id).status == "succeeded"
    versions = [store.get_version(task, 1) for task in ("whole", "broken")]
    assert versions[0].meta.template == versions[1].meta.template
    whole, broken = (store.load(version) for version in versions)
    assert whole.keys() == broken.keys()
    for name in whole:
        assert torch.equal(torch.from_numpy(whole[name]), torch.from_numpy(broken[name]))
