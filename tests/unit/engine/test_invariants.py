"""Two of the design's invariants for any template, text and length: what was trained is what is served, and virtual
tokens count in every limit."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PromptTuningConfig, TaskType, get_peft_model

from app.backbone import LoadedPrompt, score_labels
from app.engine import Ask, EngineConfig, Request, RowRequest
from app.engine.admission import Admission
from app.engine.intake import encode_asks
from app.engine.scheduler import Scheduler
from app.errors import ContextTooLong, Overloaded
from prompt_store.models import Decoding
from tests.architectures import build_backbone
from tests.engines import make_engine, row_of, run
from tests.prompts import WORDS, make_prompt

# peft 0.21 reads a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
SIZE = st.integers(0, 12)
LABELS = {"good": (" good",), "bad": (" bad",), "so": (" so",)}


def template_of(leading: int, middle: int, trailing: int) -> str:
    def slot(size: int) -> str:
        return f"<prompt:{size}>" if size else ""

    return f"{slot(leading)}Read: {slot(middle)}{{text}} It was{slot(trailing)}"


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(["llama", "qwen3", "gpt2", "opt"]),
    sizes=st.tuples(SIZE, SIZE, SIZE),
    texts=st.lists(TEXT, min_size=1, max_size=3),
)
def test_labels_are_scored_by_the_engine_as_training_scores_them(
    model: str, sizes: tuple[int, int, int], texts: list[str]
) -> None:
    backbone = build_backbone(model)
    prompt = make_prompt(backbone, template_of(*sizes), words=WORDS, seed=sum(sizes))
    assert prompt.verbalizer is not None
    rows = [row_of(backbone, prompt, text) for text in texts]
    trained = score_labels(
        backbone, [row.row for row in rows], [prompt.vectors] * len(rows), [prompt.verbalizer] * len(rows)
    )
    for round in range(2):  # the second one finds the leading part's keys and values
        for row, wanted in zip(scored(backbone, prompt, rows, round), trained, strict=True):
            assert row == pytest.approx(wanted.tolist(), abs=1e-4)


@cache
def engine_of(model: str) -> Any:
    return make_engine(build_backbone(model), max_context=160, max_batch_tokens=400)


def scored(backbone: Any, prompt: LoadedPrompt, rows: list[RowRequest], round: int) -> list[tuple[float, ...]]:
    engine = engine_of(backbone.name)
    vectors = {} if prompt.vectors is None else {prompt.digest: prompt.vectors}
    for i, row in enumerate(rows):
        engine.submit(Request(f"{round}-{i}", (row,), 1e9), vectors)
    events = run(engine)
    return [events[f"{round}-{i}"][-1].scores or () for i in range(len(rows))]


@settings(max_examples=12, deadline=None)
@given(model=st.sampled_from(["llama", "gpt2"]), size=st.integers(1, 20), seed=st.integers(0, 99), text=TEXT)
def test_leading_prompt_is_served_as_peft_reads_it(model: str, size: int, seed: int, text: str) -> None:
    backbone = build_backbone(model)
    prompt = make_prompt(backbone, f"<prompt:{size}>{{text}} It was", words=LABELS, seed=seed)
    assert prompt.verbalizer is not None
    assert prompt.vectors is not None
    row = row_of(backbone, prompt, text)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=size, tokenizer_name_or_path=None)
    wrapped = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    ids = torch.tensor([[index for index in row.row.ids if index >= 0]])
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(prompt.vectors)
        logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].log_softmax(-1)
    wanted = [float(logits[words[0][0]]) for words in prompt.verbalizer.ids]
    assert all(len(word) == 1 for words in prompt.verbalizer.ids for word in words)
    assert scored(backbone, prompt, [row], 0)[0] == pytest.approx(wanted, abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(sizes=st.tuples(SIZE, SIZE, SIZE), text=TEXT, new=st.integers(1, 50), labels=st.booleans())
def test_virtual_tokens_count_in_every_limit(sizes: tuple[int, int, int], text: str, new: int, labels: bool) -> None:
    backbone = build_backbone("llama")
    prompt = make_prompt(backbone, template_of(*sizes), words=WORDS if labels else None)
    ask = Ask(prompt, {"text": text}, Decoding(max_tokens=new))
    (row,) = encode_asks(backbone.tokenizer, [ask], max_context=10_000)
    assert isinstance(row, RowRequest)
    verbalizer = prompt.verbalizer  # of a word nothing follows its last token, which therefore takes no place
    words = sum(len(ids) - 1 for of in verbalizer.ids for ids in of) if verbalizer is not None else new
    real = sum(index >= 0 for index in row.row.ids)
    size = real + sum(sizes) + words
    assert (row.row.virtual_tokens, row.row.text_tokens) == (sum(sizes), real)
    # the context, where texts come in and where rows do
    assert encode_asks(backbone.tokenizer, [ask], max_context=size) == [row]
    (refused,) = encode_asks(backbone.tokenizer, [ask], max_context=size - 1)
    assert isinstance(refused, ContextTooLong)
    assert f"{real} text tokens, {sum(sizes)} virtual tokens and {words} " in str(refused)
    request = Request("one", (row,), 1e9)
    request.check(places=size, slots=1)
    with pytest.raises(ValueError, match=f"{size} tokens exceed the context of {size - 1}"):
        request.check(places=size - 1, slots=1)
    # the queue
    for room, fits in ((2 * size, True), (2 * size - 1, False)):
        admission = Admission(EngineConfig(max_rows=1, max_queued_tokens=room))
        with admission.places(1), admission.places(1):
            admission.queue(row.cost)
            if fits:
                admission.queue(row.cost)
            else:
                with pytest.raises(Overloaded):
                    admission.queue(row.cost)
    scheduler = Scheduler(slots=1, max_batch_tokens=100)
    scheduler.add(request)
    assert scheduler.waiting.tokens == size
