"""Encoder-decoders: rows of any tasks in one batch answer as each alone, as the model's own forward and `generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from app.backbone import (
    Backbone,
    LoadedPrompt,
    Row,
    answer_logprobs,
    compile_verbalizer,
    encode_answer,
    encode_row,
    generate_greedy,
    parse_template,
    score_labels,
)
from app.backbone.families.seq2seq_probe import probe_seq2seq
from app.backbone.families.seq2seq_reference import Seq2SeqReference
from app.backbone.kv import PrefixKV
from app.backbone.runner import PrefillItem
from app.backbone.soft_prompt import EncoderDecoderPrompt
from app.engine import Engine, EngineConfig, Event, Request, Sampling
from app.errors import InvalidPrompt
from tests.architectures import VOCABULARY, build_backbone, build_model
from tests.prompts import TEMPLATES, TEXTS, WORDS, make_prompt

MODELS = ["t5", "t5_gated", "umt5", "bart", "mbart", "pegasus"]
TOLERANCE = 1e-4
NEW_TOKENS = 6


def requests_for(backbone: Backbone) -> list[tuple[LoadedPrompt, Request]]:
    """Every placement × generation and labels × texts of unequal length."""
    made = []
    for t, template in enumerate(TEMPLATES):
        for words in (None, WORDS):
            prompt = make_prompt(backbone, template, words=words, seed=t)
            for text in TEXTS[t % 2 :: 2]:
                row = encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text})
                digest = prompt.digest if prompt.learned is not None else None
                sampling = None if words else Sampling(NEW_TOKENS - t % 3, temperature=0.8 * (t % 2), top_k=50, seed=t)
                asked = Request.single(f"{len(made)}", row, digest, time.monotonic() + 600, sampling, prompt.verbalizer)
                made.append((prompt, asked))
    return made


def run(engine: Engine, requests: Sequence[tuple[LoadedPrompt, Request]]) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {request.id: [] for _, request in requests}
    for prompt, request in requests:
        if prompt.learned is not None:
            engine.load(prompt.digest, prompt.learned)
        engine.submit(request)
    while not engine.idle:
        for event in engine.step():
            events[event.request_id].append(event)
        engine.check_integrity()
    return events


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def sides_of(prompt: LoadedPrompt) -> EncoderDecoderPrompt:
    return EncoderDecoderPrompt(prompt.vectors)


@pytest.mark.parametrize("name", MODELS)
def test_probe_of_an_encoder_decoder_takes_the_batched_forward(name: str) -> None:
    backbone = build_backbone(name)
    assert (backbone.family, backbone.runner_name) == ("seq2seq", "fast")
    assert backbone.probed.deviation < 1e-3
    assert backbone.probed.seq2seq is not None
    assert backbone.probed.seq2seq.aligned is (name in ("t5", "t5_gated", "umt5"))
    assert backbone.probed.seq2seq.spread is (name == "umt5")
    assert backbone.probed.seq2seq.scaled is (name in ("t5", "umt5"))


def test_probe_where_the_batched_head_disagrees_falls_back_to_rows_alone() -> None:
    model = build_model("bart")
    forward = model.forward
    model.forward = lambda **given: _louder(forward(**given))
    probed = probe_seq2seq(model, start=(1,), vocab_size=VOCABULARY, context=200)
    assert probed.seq2seq is None
    assert "differ" in probed.reason


def _louder(output: object) -> object:
    output.logits = output.logits * 1.5  # type: ignore[attr-defined]
    return output


@pytest.mark.parametrize("name", MODELS)
def test_mixed_batch_of_an_encoder_decoder_equals_each_row_alone(name: str) -> None:
    backbone = build_backbone(name)
    requests = requests_for(backbone)
    together = run(Engine(backbone, EngineConfig(max_rows=7, max_context=128)), requests)
    alone = Seq2SeqReference(backbone.model, backbone.decoder_start, slots=0, places=0)
    for prompt, request in requests:
        events = together[request.id]
        (row,) = request.rows
        if row.verbalizer is not None:
            wanted = alone.score(row.row, prompt.learned, row.verbalizer)
            assert torch.allclose(torch.tensor(events[-1].scores), wanted, atol=TOLERANCE)
        else:
            single = run(Engine(backbone, EngineConfig(max_rows=1, max_context=128)), [(prompt, request)])
            assert tokens_of(events) == tokens_of(single[request.id])


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_equal_the_models_own_generate(name: str) -> None:
    backbone = build_backbone(name)
    prompt = make_prompt(backbone, "{text} so<prompt:5>", seed=3)
    rows = [encode_row(backbone.tokenizer, prompt.template, prompt.bos, {"text": text}) for text in TEXTS]
    found = generate_greedy(backbone, rows, [prompt.learned] * len(rows), max_tokens=NEW_TOKENS)
    alone = Seq2SeqReference(backbone.model, backbone.decoder_start, slots=0, places=0)
    start = backbone.decoder_start
    for row, generated in zip(rows, found, strict=True):
        states = alone.encode(row, sides_of(prompt))
        fed = torch.tensor([start])
        for token in generated.tokens:
            logits = backbone.model(
                encoder_outputs=(states,), decoder_input_ids=fed, attention_mask=torch.ones(1, states.shape[1])
            ).logits[0, -1]
            assert int(logits.argmax()) == token
            fed = torch.cat((fed, torch.tensor([[token]])), 1)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_scores_and_gradients_of_training_equal_rows_alone(name: str) -> None:
    backbone = build_backbone(name)
    template = parse_template("<prompt:4>{text} It was<prompt:3>")
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS)
    rows = [encode_row(backbone.tokenizer, template, "after_prompt", {"text": text}) for text in TEXTS]
    vectors = (make_prompt(backbone, template.source).learned, make_prompt(backbone, template.source).learned)
    ours, theirs = (torch.as_tensor(v).clone().requires_grad_(True) for v in vectors)
    answer = encode_answer(backbone.tokenizer, template, "a fine answer")
    alone = Seq2SeqReference(backbone.model, backbone.decoder_start, slots=0, places=0)
    labels = torch.stack(score_labels(backbone, rows, [ours] * len(rows), [verbalizer] * len(rows)))
    told = answer_logprobs(backbone, rows, [ours] * len(rows), [answer] * len(rows))
    wanted = torch.stack([alone.score(row, theirs, verbalizer) for row in rows])
    wanted_told = [alone.answer_logprobs(row, theirs, answer) for row in rows]
    assert torch.allclose(labels, wanted, atol=TOLERANCE)
    assert torch.allclose(torch.cat(told), torch.cat(wanted_told), atol=TOLERANCE)
    (labels.sum() + torch.cat(told).sum()).backward()
    (wanted.sum() + torch.cat(wanted_told).sum()).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-3 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_decoder_vectors_of_unequal_number_are_read_before_the_start(name: str) -> None:
    backbone = build_backbone(name)
    generator = torch.Generator().manual_seed(5)

    def vectors(count: int) -> torch.Tensor:
        return torch.randn(count, backbone.hidden_size, generator=generator) * backbone.embedding_rms

    prompts = [EncoderDecoderPrompt(vectors(2), vectors(count)) for count in (1, 4)] + [
        EncoderDecoderPrompt(vectors(2))
    ]
    rows = [Row((-1, 7, 8, 9, 10 + i, -2, 1)) for i in range(3)]
    verbalizer = compile_verbalizer(backbone.tokenizer, WORDS)
    alone = Seq2SeqReference(backbone.model, backbone.decoder_start, slots=3, places=0)
    found = score_labels(backbone, rows, prompts, [verbalizer] * 3)
    for row, prompt, scores in zip(rows, prompts, found, strict=True):
        assert torch.allclose(scores, alone.score(row, prompt, verbalizer), atol=TOLERANCE)
    texts = generate_greedy(backbone, rows, prompts, max_tokens=4)
    for row, prompt, generated in zip(rows, prompts, texts, strict=True):
        (single,) = generate_greedy(backbone, [row], [prompt], max_tokens=4)
        assert generated.tokens == single.tokens


def test_labels_of_one_token_need_one_decoder_row_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("t5")
    rows = []
    decoder = backbone.model.get_decoder()
    watch = decoder.register_forward_pre_hook(
        lambda _, args, given: rows.append(given["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    verbalizer = compile_verbalizer(backbone.tokenizer, {"good": ["good"], "bad": ["bad"], "fun": ["great fun"]})
    longest = max(len(word) for _, word in verbalizer.flat)
    score_labels(backbone, [Row((5, 6, 1)), Row((7, 1))], [None, None], [verbalizer] * 2)
    watch.remove()
    assert rows == [(2, longest)]  # the longest word's row tells the others' first tokens too


def test_keys_and_values_before_an_encoders_text_are_refused() -> None:
    backbone = build_backbone("t5")
    assert backbone.decoder_kv_shape is not None
    assert backbone.kv_shape is None
    prompt = PrefixKV(torch.zeros(backbone.decoder_kv_shape.prefix(3)))
    with pytest.raises(InvalidPrompt, match="decoder's side"):
        answer_logprobs(backbone, [Row((5, 1))], [prompt], [(4, 1)])


def test_a_failed_step_that_is_taken_again_changes_nothing() -> None:
    backbone = build_backbone("t5")
    runner = backbone.runner(slots=3, places=40)
    rows = [Row((5, 6, 7, 1)), Row((8, 1))]
    runner.prefill(0, [PrefillItem(row) for row in rows])
    lengths = torch.tensor([4, 2])
    first = runner.decode(torch.tensor([20, 21]), lengths, 4)
    again = runner.decode(torch.tensor([20, 21]), lengths, 4)
    assert torch.equal(first, again)
    runner.decode(torch.tensor([30, 31]), lengths + 1, 5)
    back = runner.decode(torch.tensor([20, 21]), lengths, 4)
    assert torch.allclose(first, back, atol=1e-5)
