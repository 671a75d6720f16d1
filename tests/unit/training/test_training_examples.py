"""Encoding, splitting and ordering examples; schedules."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from app.backbone import Backbone, Row, compile_verbalizer, default_bos, parse_template
from app.training.data import Example, parse_rows
from app.training.examples import Batches, Encoded, Encoder, frequent_tokens, sample_rows, split_rows
from app.training.gradients import in_parts
from app.training.requests import Hyperparameters
from app.training.schedule import MAX_STEPS, MIN_STEPS, make_schedule
from tests.training_data import mood_rows


def labelled(**counts: int) -> list[Example]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [Example(row=n, fields={"text": str(n)}, label=label) for n, label in enumerate(labels, start=1)]


def test_split_holds_back_a_share_of_each_label() -> None:
    train, dev = split_rows(labelled(a=50, b=10, c=2, d=1), 0.2, seed=0)
    assert Counter(example.label for example in dev) == {"a": 10, "b": 2, "c": 1}
    assert Counter(example.label for example in train) == {"a": 40, "b": 8, "c": 1, "d": 1}
    assert split_rows(labelled(a=50, b=10, c=2, d=1), 0.2, seed=0) == (train, dev)


def test_split_keeps_all_examples_of_one_row_together() -> None:
    examples = [Example(row=n // 3, fields={"input": str(n)}, output="x") for n in range(30)]
    train, dev = split_rows(examples, 0.3, seed=0)
    assert {example.row for example in train}.isdisjoint(example.row for example in dev)
    assert len(dev) == 9


def test_split_of_labels_with_one_row_each_holds_nothing_back() -> None:
    assert split_rows(labelled(a=1, b=1, c=1, d=1), 0.5, seed=0)[1] == []


def test_sample_keeps_labels_in_proportion_and_rows_in_order() -> None:
    found = sample_rows(labelled(a=900, b=100), 100, seed=0)
    assert Counter(example.label for example in found) == {"a": 90, "b": 10}
    assert [example.row for example in found] == sorted(example.row for example in found)


def test_sample_of_rare_labels_keeps_each_and_takes_the_excess_from_the_common_one() -> None:
    rows = labelled(common=5000, **{f"rare{n:02}": 5 for n in range(99)})
    found = Counter(example.label for example in sample_rows(rows, 300, seed=0))
    assert (sum(found.values()), len(found), found["common"]) == (300, 100, 201)


def test_sample_of_more_labels_than_rows_keeps_labels_by_chance_and_not_by_place() -> None:
    rows = labelled(**{f"label{n:03}": 2 for n in range(100)})
    samples = [sample_rows(rows, 20, seed=seed) for seed in range(3)]
    assert [len({example.label for example in one}) for one in samples] == [20, 20, 20]
    assert max(example.row for example in samples[0]) > 100
    assert len({tuple(example.row for example in one) for one in samples}) == 3
    assert sample_rows(rows, 20, seed=1) == samples[1]


def test_batches_meet_every_example_once_an_epoch_and_go_on_from_any_step() -> None:
    order = Batches(lengths=tuple((7 * n) % 50 for n in range(101)), batch_size=8, seed=3)
    steps = list(islice(order.from_step(0), 3 * order.per_epoch))
    for epoch in range(3):
        places = [place for batch in steps[epoch * order.per_epoch :][: order.per_epoch] for place in batch]
        assert sorted(places) == list(range(101))
    assert list(islice(order.from_step(17), 9)) == steps[17:26]
    assert steps[: order.per_epoch] != steps[order.per_epoch : 2 * order.per_epoch]


def test_batches_hold_rows_of_like_length() -> None:
    order = Batches(lengths=tuple(range(160)), batch_size=10, seed=0)
    assert all(max(batch) - min(batch) <= 12 for batch in islice(order.from_step(0), 16))


def encoder(backbone: Backbone, template: str, words: dict[str, list[str]] | None, max_tokens: int = 64) -> Encoder:
    verbalizer = compile_verbalizer(backbone.tokenizer, words) if words else None
    bos = default_bos(backbone.tokenizer)
    return Encoder(backbone.tokenizer, parse_template(template), bos, verbalizer, max_tokens)


def test_label_example_is_cut_to_leave_room_for_its_words(backbone: Backbone) -> None:
    words = {"good": [" good"], "bad": [" not at all good"]}
    encode = encoder(backbone, "<prompt:4>{text}\nAnswer:", words)
    encoded = encode.encode(Example(1, {"text": "word " * 200}, label="bad"))
    assert encode.verbalizer is not None
    assert encoded.row.total == 64 - encode.verbalizer.longest
    assert encoded.row.virtual_tokens == 4
    assert encoded.label == 1
    assert encode.is_cut(encoded)
    assert not encode.is_cut(encode.encode(Example(2, {"text": "word"}, label="good")))


def test_answer_of_free_text_ends_with_the_end_token_and_is_never_lost(backbone: Backbone) -> None:
    encode = encoder(backbone, "<prompt:4>{text}\nAnswer:", None)
    encoded = encode.encode(Example(1, {"text": "word " * 200}, output="a plain answer"))
    assert encoded.answer[-1] in backbone.tokenizer.eos_ids
    assert backbone.tokenizer.decode(encoded.answer) == " a plain answer"
    assert encoded.length == 64


def test_frequent_tokens_are_those_of_the_rows_without_special_ones(backbone: Backbone) -> None:
    encode = encoder(backbone, "<prompt:4>{text}", {"good": [" good"], "bad": [" bad"]})
    encoded = [encode.encode(example) for example in parse_rows(mood_rows()).examples]
    found = frequent_tokens(encoded, backbone.tokenizer.reserved)
    assert backbone.tokenizer.bos_id not in found
    assert backbone.tokenizer.decode(found[:1]).strip() in {".", "It", "The", "number"}


def test_parts_stay_within_their_tokens_and_lose_no_row(backbone: Backbone) -> None:
    encode = encoder(backbone, "<prompt:4>{text}", {"good": [" good"], "bad": [" bad"]})
    encoded = [encode.encode(example) for example in parse_rows(mood_rows()).examples]
    found = in_parts(encoded, 60)
    assert sorted(id(one) for part in found for one in part) == sorted(id(one) for one in encoded)
    assert all(len(part) == 1 or len(part) * max(one.length for one in part) <= 60 for part in found)


@pytest.mark.parametrize(
    ("rows", "batch", "steps"),
    [(4, 4, MIN_STEPS), (120, 16, 160), (900, 16, MAX_STEPS), (67_000, 32, MAX_STEPS)],
)
def test_automatic_schedule_follows_the_number_of_rows(rows: int, batch: int, steps: int) -> None:
    schedule = make_schedule(Hyperparameters(), rows=rows, num_virtual_tokens=20)
    assert (schedule.batch_size, schedule.steps, schedule.learning_rate, schedule.seed) == (batch, steps, None, 0)


def test_schedule_takes_what_the_user_says() -> None:
    wanted = Hyperparameters(n_epochs=0.5, batch_size=10, learning_rate=1, seed=7)
    schedule = make_schedule(wanted, rows=100, num_virtual_tokens=20)
    assert (schedule.steps, schedule.batch_size, schedule.learning_rate, schedule.seed) == (5, 10, 1.0, 7)


def test_learning_rate_warms_up_and_falls() -> None:
    schedule = make_schedule(Hyperparameters(n_epochs=100, batch_size=10), rows=100, num_virtual_tokens=20)
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    top = rates.index(max(rates))
    assert (rates[0] < 0.05, max(rates)) == (True, 1.0)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_parts_end_where_padding_would_cost_more_than_it_saves() -> None:
    rows = [Row(tuple(range(length))) for length in (30, 9, 10, 8, 31)]
    encoded = [Encoded(row, 0, (), Example(1, {"text": ""}, label="a")) for row in rows]
    lengths = [[one.length for one in part] for part in in_parts(encoded, 1000, waste=20)]
    assert lengths == [[8, 9, 10], [30, 31]]
    assert len(in_parts(encoded, 1000)) == 1
