"""The `openai` package, unmodified, against a live server: sync, async, streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.fakes import World, make_world
from tests.live import HANG_S, serving

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_server_url: str) -> World:
    return make_world(tmp_path_factory.mktemp("world"), redis_server_url, api_key=KEY)


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with serving(world.app) as live:
        yield f"{live.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=HANG_S) as client:
        yield client


def test_models_are_the_tasks(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "nli", "sentiment"]
    assert client.models.retrieve("echo").owned_by == "chorus"


def test_completion_answers_a_text_task(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="echo", prompt="one two", max_tokens=5, temperature=0.5, stop=["x"], seed=1
    )
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one two", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2)
    assert answer.model == "echo"
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("echo@1:")


def test_completion_answers_a_label_task_with_its_label(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="sentiment:prod", prompt="fine").choices[0]
    assert (choice.text, choice.finish_reason) == ("negative", "stop")


def test_completion_answers_many_prompts_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo@1", prompt=["one", "two", "three"])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "one"), (1, "two"), (2, "three")]


def test_streamed_completion_is_the_same_text_with_usage_when_asked(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="echo", prompt="one two three", stream=True, stream_options={"include_usage": True}
    )
    *pieces, usage = list(stream)
    assert "".join(piece.choices[0].text for piece in pieces) == "one two three"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 3


def test_streamed_completion_without_the_option_has_no_usage_chunk(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="sentiment", prompt="x", stream=True))
    assert [chunk.usage for chunk in chunks] == [None]
    assert chunks[0].choices[0].text == "negative"


def test_async_client_completes_and_streams(url: str) -> None:
    async def run() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=HANG_S) as client:
            whole = await client.completions.create(model="echo", prompt="one two")
            stream = await client.completions.create(model="echo", prompt="one two", stream=True)
            return whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(run()) == ("one two", "one two")


@pytest.mark.parametrize(
    ("model", "prompt", "kind"),
    [
        ("nothing", "x", openai.NotFoundError),
        ("echo@word", "x", openai.UnprocessableEntityError),
        ("nli", "x", openai.UnprocessableEntityError),
        ("echo", "!overloaded", openai.RateLimitError),
        ("echo", "!failure", openai.InternalServerError),
    ],
)
def test_failure_is_the_packages_own_error_with_our_code(
    client: openai.OpenAI, model: str, prompt: str, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as failed:
        client.completions.create(model=model, prompt=prompt)
    assert failed.value.code
    assert failed.value.type
    assert failed.value.request_id


def test_wrong_key_is_an_authentication_error(url: str) -> None:
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_failure_in_a_stream_is_raised_by_the_package(client: openai.OpenAI) -> None:
    texts = []
    with pytest.raises(openai.APIError) as failed:
        texts.extend(chunk.choices[0].text for chunk in _stream(client, "one !break"))
    assert failed.value.code == "engine_failure"


def test_one_failing_prompt_of_many_fails_the_call(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        client.completions.create(model="echo", prompt=["fine", "!long"])


@pytest.mark.parametrize(
    "options",
    [{"n": 2}, {"best_of": 3}, {"echo": True}, {"logprobs": 1}, {"presence_penalty": 0.5}, {"suffix": "x"}],
)
def test_option_that_cannot_be_honoured_is_refused_not_ignored(client: openai.OpenAI, options: dict[str, int]) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as failed:
        client.completions.create(model="echo", prompt="x", **options)  # type: ignore[call-overload]
    assert failed.value.code == "capability_missing"


def test_option_with_its_neutral_value_is_accepted(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="echo", prompt="x", n=1, best_of=1, echo=False, presence_penalty=0, frequency_penalty=0, user="me"
    )
    assert answer.choices[0].text == "x"


def _stream(client: openai.OpenAI, prompt: str) -> Iterator[openai.types.Completion]:
    yield from client.completions.create(model="echo", prompt=prompt, stream=True)
