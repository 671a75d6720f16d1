from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pretraining.mixture import Batch, Mixture
from pretraining.objectives import OBJECTIVES, Objective, Prepared, objectives_of
from pretraining.objectives.base import attention_form
from pretraining.objectives.masked import Masked, positions_of
from pretraining.objectives.pairs import START, WithSpace, parts_of
from pretraining.objectives.prefix import Prefix
from pretraining.objectives.seq2seq import SENTINELS, Seq2Seq
from pretraining.objectives.spans import Spans, random_lengths, spans_of
from pretraining.optimizer import split_parameters
from pretraining.packing import read_manifest
from pretraining.recipe import FAMILIES, recipe_from
from pretraining.shards import PackedReader
from pretraining.tokenizer import BOS, EOS, MASK, PAD, load_tokenizer
from tests.unit.pretraining.conftest import World, raw_sibling

VOCABULARY = 400


@pytest.fixture
def tokenizer(packed: World) -> Tokenizer:
    return load_tokenizer(packed.work / "tokenizer")


def made(name: str, tokenizer: Tokenizer) -> Objective:
    return objectives_of(recipe_from(raw_sibling(name)), tokenizer)[name]


def drawn(world: World, source: str, rows: int = 4, length: int = 60) -> Batch:
    """A batch of one source, as training draws it."""
    raw = raw_sibling("spans")
    raw["shape"]["context"] = length
    raw["phases"] = [{**raw["phases"][0], "rows": rows, "length": length, "mixture": {source: 1.0}}]
    reader = PackedReader(world.work / "shards" / source, read_manifest(world.work)[source])
    return Mixture({source: reader}).batch(recipe_from(raw).phases[0])


def text_batch(rows: int, length: int) -> Batch:
    """Running text in the midst of one document; ids that no tokenizer need know."""
    ids = np.random.default_rng(1).integers(MASK + 1, VOCABULARY, (rows, length + 1))
    weights = np.ones((rows, length), np.float32)
    return Batch(ids, weights, np.zeros((rows, length), np.bool_), ("text",) * rows)


def pairs_in(prepared: Prepared) -> Iterator[tuple[list[int], list[int], list[float], list[bool]]]:
    """(read, written, weights, answers) of every pair of every row."""
    read, read_of, given, given_of = prepared.inputs
    for row in range(len(read)):
        for number in range(1, int(read_of[row].max()) + 1):
            at = given_of[row] == number
            written = prepared.targets[row][at].tolist()
            assert given[row][at].tolist() == [START, *written[:-1]]
            yield (
                read[row][read_of[row] == number].tolist(),
                written,
                prepared.weights[row][at].tolist(),
                prepared.answers[row][at].tolist(),
            )


def filled(read: list[int], written: list[int], first: int) -> list[int]:
    """The text again: each sentinel replaced by what was written behind it."""
    hidden: dict[int, list[int]] = {}
    for token in written[:-1]:
        if token >= first:
            hidden[token] = []
        else:
            hidden[next(reversed(hidden))].append(token)
    return [token for index in read[:-1] for token in hidden.get(index, [index])]


def test_registry_when_read_knows_what_recipes_may_ask_for() -> None:
    assert {name: one.family for name, one in OBJECTIVES.items()} == FAMILIES


# -- spans


def test_spans_when_filled_in_are_the_text_and_sentinels_stand_in_order(tokenizer: Tokenizer) -> None:
    batch = text_batch(8, 200)
    pairs = list(pairs_in(made("spans", tokenizer).prepare(batch, np.random.default_rng(0))))
    assert len(pairs) == 8
    for (read, written, weights, answers), ids in zip(pairs, batch.ids, strict=True):
        sentinels = [token for token in read if token >= VOCABULARY]
        assert sentinels == [token for token in written if token >= VOCABULARY]
        assert sentinels == list(range(VOCABULARY, VOCABULARY + len(sentinels)))
        assert len(sentinels) == 10
        assert len(written) == 30 + 10 + 1
        assert read[-1] == written[-1] == EOS
        assert read[0] < VOCABULARY
        assert filled(read, written, VOCABULARY) == ids[:-1].tolist()
        assert set(weights) == {1.0}
        assert not any(answers)


@pytest.mark.parametrize(
    ("tokens", "hidden", "spans"), [(2, 1, 1), (8, 1, 1), (20, 3, 1), (256, 38, 13), (512, 77, 26)]
)
def test_spans_of_a_text_are_15_percent_of_it_three_tokens_each(tokens: int, hidden: int, spans: int) -> None:
    assert spans_of(tokens) == (hidden, spans)


def test_lengths_when_drawn_sum_up_and_all_come(tokenizer: Tokenizer) -> None:
    chance = np.random.default_rng(0)
    seen = {tuple(random_lengths(5, 3, chance)) for _ in range(200)}
    assert seen == {(a, b, 5 - a - b) for a in (1, 2, 3) for b in (1, 2, 3) if a + b < 5}
    assert random_lengths(4, 1, chance) == [4]


def test_spans_when_a_window_has_more_than_there_are_sentinels_are_refused(tokenizer: Tokenizer) -> None:
    raw = raw_sibling("spans")
    raw["shape"]["context"] = 4096
    raw["phases"][0]["length"] = 4096
    with pytest.raises(Exception, match="more hidden spans than there are sentinels"):
        objectives_of(recipe_from(raw), tokenizer)


def test_documents_when_packed_are_pairs_that_reconstruct_each(packed: World, tokenizer: Tokenizer) -> None:
    batch = drawn(packed, "wikipedia")
    parts = [part for of in parts_of(batch) for part in of]
    with_space = WithSpace(tokenizer)
    pairs = list(pairs_in(made("spans", tokenizer).prepare(batch, np.random.default_rng(0))))
    wanted = [with_space(part.ids) if part.begins else part.ids for part in parts if len(part.ids) >= 8]
    assert [filled(read, written, VOCABULARY) for read, written, _, _ in pairs] == wanted


# -- prefix


def test_prefix_when_joined_is_the_text_and_at_most_half_of_it_is_written(tokenizer: Tokenizer) -> None:
    batch = text_batch(16, 100)
    pairs = list(pairs_in(made("prefix", tokenizer).prepare(batch, np.random.default_rng(0))))
    lengths = [len(written) for _, written, _, _ in pairs]
    assert len(pairs) == 16
    assert min(lengths) < 20
    assert 40 < max(lengths) <= 50
    for (read, written, weights, _), ids in zip(pairs, batch.ids, strict=True):
        assert read[-1] == EOS
        assert [*read[:-1], *written] == ids[:-1].tolist()
        assert set(weights) == {1.0}


def test_prefix_when_a_document_ends_writes_its_end_and_else_does_not(packed: World, tokenizer: Tokenizer) -> None:
    batch = drawn(packed, "wikipedia")
    ends = [part.ends for of in parts_of(batch) for part in of if len(part.ids) >= 8]
    pairs = list(pairs_in(made("prefix", tokenizer).prepare(batch, np.random.default_rng(0))))
    assert [written[-1] == EOS for _, written, _, _ in pairs] == ends
    assert set(ends) == {True, False}


# -- exercises of encoder-decoders


@pytest.mark.parametrize("name", ["spans", "prefix"])
def test_exercise_when_prepared_is_read_to_its_answer_and_the_answer_written(
    packed: World, tokenizer: Tokenizer, name: str
) -> None:
    batch = drawn(packed, "sentences", length=200)
    documents = [part for of in parts_of(batch) for part in of]
    pairs = list(pairs_in(made(name, tokenizer).prepare(batch, np.random.default_rng(0))))
    assert len(pairs) == len(documents) >= 6
    for (read, written, weights, answers), part in zip(pairs, documents, strict=True):
        assert part.answer is not None
        before = tokenizer.decode(part.ids[: part.answer.start])
        assert tokenizer.decode(read[:-1]) == f" {before}"
        assert written == [*part.ids[part.answer], EOS]
        assert weights == [5.0] * (len(written) - 1) + [0.5]
        assert answers == [True] * (len(written) - 1) + [False]


def test_text_when_begun_with_a_space_is_tokenised_as_in_one_piece(tokenizer: Tokenizer) -> None:
    with_space = WithSpace(tokenizer)
    for text in (
        "the dog sleeps",
        "Review: a dog",
        "Article 7\nThe cat",
        "“Quoted” — ünïcode",
        "one",
        "\n odd",
        "a  b",
    ):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        spaced = text if text[0].isspace() else f" {text}"
        assert with_space(ids) == with_space(ids) == tokenizer.encode(spaced, add_special_tokens=False).ids


def test_pairs_when_packed_side_by_side_do_not_see_each_other(packed: World, tokenizer: Tokenizer) -> None:
    """The loss of a row is that of its pairs, each alone in a row."""
    raw = raw_sibling("spans")
    objective = objectives_of(recipe_from(raw), tokenizer)["spans"]
    for attention in ("eager", "sdpa"):
        raw["train"]["attention"] = attention
        model = Spans.new_model(recipe_from(raw), VOCABULARY).eval()
        prepared = objective.prepare(drawn(packed, "sentences", rows=1, length=200), np.random.default_rng(0))
        whole = Spans.losses(model, *prepared.tensors("cpu"))
        alone = 0.0
        for read, written, _, _ in (pairs := list(pairs_in(prepared))):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([[START, *written[:-1]]])
                ).logits[0]
            alone -= float(logits.log_softmax(-1)[range(len(written)), written].sum())
        assert len(pairs) > 1
        assert float(whole.plain) == pytest.approx(alone, rel=1e-4)
        assert torch.isfinite(whole.total)


# -- masked


def test_masked_when_prepared_names_15_percent_by_80_10_10(tokenizer: Tokenizer) -> None:
    batch = text_batch(32, 400)
    prepared = made("masked", tokenizer).prepare(batch, np.random.default_rng(0))
    shown, _, places = prepared.inputs
    ids = batch.ids[:, :-1]
    named = prepared.weights > 0
    assert (named.sum(1) == 60).all()
    assert (prepared.targets[named] == np.take_along_axis(ids, places, 1)[named]).all()
    changed = shown != ids
    at = np.take_along_axis(shown, places, 1)[named]
    as_mask, same = (at == MASK).mean(), (at == prepared.targets[named]).mean()
    assert as_mask == pytest.approx(0.8, abs=0.03)
    assert same == pytest.approx(0.1, abs=0.03)
    for row in range(32):
        assert set(np.flatnonzero(changed[row])) <= set(places[row][named[row]].tolist())
        assert len(set(places[row][named[row]].tolist())) == 60
    assert shown.min() >= MASK


def test_answers_when_prepared_for_masks_are_all_hidden_and_weighted(packed: World, tokenizer: Tokenizer) -> None:
    batch = drawn(packed, "sentences", rows=8, length=200)
    prepared = made("masked", tokenizer).prepare(batch, np.random.default_rng(0))
    shown, _, places = prepared.inputs
    untouched = both = 0
    for row in range(8):
        answers = np.flatnonzero(np.append(False, batch.answers[row, :-1]))
        assert (shown[row, answers] == MASK).all()
        assert sorted(places[row][prepared.answers[row]].tolist()) == answers.tolist()
        assert set(prepared.weights[row][prepared.answers[row]].tolist()) == {5.0}
        assert {0.5} >= set(prepared.weights[row][(prepared.weights[row] > 0) & ~prepared.answers[row]].tolist())
        document = (batch.ids[row, :-1] == BOS).cumsum()
        others = set(document[places[row][(prepared.weights[row] > 0) & ~prepared.answers[row]]].tolist())
        untouched += len(set(document[answers].tolist()) - others)
        both += len(set(document[answers].tolist()) & others)
    assert untouched > 0
    assert both > 0


def test_masked_when_more_is_hidden_than_fits_shows_the_rest_again(tokenizer: Tokenizer) -> None:
    batch = text_batch(1, 40)
    batch.answers[0, :20] = True
    prepared = made("masked", tokenizer).prepare(batch, np.random.default_rng(0))
    shown, _, places = prepared.inputs
    assert places.shape == (1, 10)
    assert prepared.answers.all()
    assert np.flatnonzero(shown[0] != batch.ids[0, :-1]).tolist() == sorted(places[0].tolist())


def test_positions_when_documents_are_packed_count_from_the_begin_of_each() -> None:
    assert positions_of(np.array([[7, 8, BOS, 9, 9, BOS, BOS, 4]])).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]


def test_document_when_packed_behind_another_is_read_as_alone(tokenizer: Tokenizer) -> None:
    model = Masked.new_model(recipe_from(raw_sibling("masked")), VOCABULARY).eval()
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(4, VOCABULARY, (1, 9), generator=generator) for _ in range(2))
    one[0, 0] = other[0, 0] = BOS
    one[0, 4] = MASK
    word = torch.tensor([[50]])

    def loss(ids: torch.Tensor, place: int) -> float:
        positions = torch.from_numpy(positions_of(ids.numpy()))
        at, weight = torch.tensor([[place]]), torch.ones(1, 1)
        return float(Masked.losses(model, ids, positions, at, word, weight, weight > 0).total.detach())

    with torch.no_grad():
        logits = model(input_ids=one).logits[0, 4].log_softmax(-1)
    assert loss(one, 4) == pytest.approx(loss(torch.cat((other, one), 1), 13), abs=1e-5)
    assert loss(one, 4) == pytest.approx(-float(logits[50]), abs=1e-5)


# -- all of them


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_batch_when_prepared_twice_with_the_same_chance_is_the_same_and_of_one_shape(
    packed: World, tokenizer: Tokenizer, name: str
) -> None:
    objective = made(name, tokenizer)
    shapes = set()
    for source in ("wikipedia", "nli", "reading"):
        batch = drawn(packed, source)
        before = batch.ids.copy()
        first, again = (objective.prepare(batch, np.random.default_rng((7, 3))) for _ in range(2))
        for one, other in zip((*first.inputs, *first[1:]), (*again.inputs, *again[1:]), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(batch.ids, before)
        assert ((first.weights > 0) >= first.answers).all()
        shapes.add(tuple(part.shape for part in (*first.inputs, *first[1:])))
    assert len(shapes) == 1
    if name != "causal":
        batch = drawn(packed, "wikipedia")
        first = objective.prepare(batch, np.random.default_rng((7, 3)))
        other = objective.prepare(batch, np.random.default_rng((7, 4)))
        assert not all(np.array_equal(*both) for both in zip(first.inputs, other.inputs, strict=True))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_labels_when_scored_in_batches_are_scored_as_alone(tokenizer: Tokenizer, name: str) -> None:
    objective = made(name, tokenizer)
    model = type(objective).new_model(objective.recipe, VOCABULARY).eval()
    texts = ["the dog sleeps in the", "cat", "a very old horse waits at the river and so does"]
    words = [" garden", " dog", " o'clock in the kitchen"]
    together = objective.label_scores(model, texts, words)
    alone = torch.cat([objective.label_scores(model, [text], words) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert (together < 0).all()


@pytest.mark.parametrize("name", ["spans", "masked"])
def test_optimizers_when_split_take_no_table_that_is_looked_up_for_a_matrix(name: str) -> None:
    kind = OBJECTIVES[name]
    model = kind.new_model(recipe_from(raw_sibling(name)), VOCABULARY)
    matrices, others = split_parameters(model)
    assert len(matrices) + len(others) == len(list(model.parameters()))
    tables = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    assert not tables & {id(one) for one in matrices}
    assert len(matrices) == {"spans": 2 * (4 + 3) + 2 * (8 + 3), "masked": 2 * 6 + 1}[name]


def test_model_of_spans_when_made_has_a_sentinel_behind_each_entry_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    model = Prefix.new_model(recipe_from(raw_sibling("spans", "prefix")), VOCABULARY)
    assert model.get_input_embeddings().weight.shape[0] == VOCABULARY + SENTINELS
    dressed = Tokenizer.from_str(tokenizer.to_str())
    objective = made("spans", tokenizer)
    assert isinstance(objective, Seq2Seq)
    objective.dress(dressed)
    assert dressed.token_to_id("<extra_id_0>") == VOCABULARY
    assert dressed.token_to_id(f"<extra_id_{SENTINELS - 1}>") == VOCABULARY + SENTINELS - 1
    packed_as = tokenizer.encode("the dog sleeps", add_special_tokens=False).ids
    assert dressed.encode("the dog sleeps").ids == [*WithSpace(tokenizer)(packed_as), EOS]
    assert dressed.decode(dressed.encode("the dog sleeps").ids) == "the dog sleeps"


def test_mask_when_formed_for_an_attention_hides_the_same() -> None:
    seen = torch.tensor([[[True, False], [True, True]]])
    assert attention_form(seen, "sdpa").shape == (1, 1, 2, 2)
    assert (attention_form(seen, "eager") < -1e8).equal(~attention_form(seen, "sdpa"))
    assert PAD == START
