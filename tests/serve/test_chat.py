"""`POST /v1/chat/completions` with the official client, as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch
from live_server import Running, data_url

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoder import LabelTokens
from tuyi.predict.api import ApiEngine, ApiSettings
from tuyi.predict.local import LocalEngine
from tuyi.predict.scoring import score_labels

CHOICES = ["红", "红色", "round", "square"]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def messages(picture: Callable[..., Image]) -> list[Any]:
    return [
        {"role": "system", "content": "你是一个客服专家。"},
        {"role": "user", "content": "Look: what is it?"},
        {"role": "assistant", "content": "It is red."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": data_url(picture(60, 80, seed=5))}},
            ],
        },
    ]


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "tuyi"
    with pytest.raises(openai.NotFoundError, match="expected 'small', found 'other'"):
        client.models.retrieve("other")


def test_text_is_what_greedy_decoding_writes(client: openai.OpenAI, twins: Any):
    twin = twins("qwen2_vl")
    said: Any = [{"role": "user", "content": "Which shape is it?"}]
    asked: Any = {"model": "small", "messages": said, "max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    done = client.chat.completions.create(**asked, extra_body={"return_tokens_as_token_ids": True})
    choice = done.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert 4 < len(tokens) <= 8
    ids = twin.inputs(Example("1", (Text("Which shape is it?"),), task="talk"))["input_ids"]
    assert done.usage is not None
    assert done.usage.prompt_tokens == ids.shape[1]
    for token in tokens:
        with torch.inference_mode():
            logprobs = twin.reference(input_ids=ids).logits[0, -1].log_softmax(0)
        chosen = int(token.token.removeprefix("token_id:"))
        assert token.logprob == pytest.approx(float(logprobs[chosen]), abs=1e-3)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-3)
        ids = torch.cat([ids, torch.tensor([[chosen]])], 1)
    data = b"".join(bytes(token.bytes or []) for token in tokens)
    assert data.decode(errors="ignore") == choice.message.content
    assert any(token.logprob == token.top_logprobs[0].logprob for token in tokens), "the likeliest that may stand there"


def test_streams_say_the_same(client: openai.OpenAI, messages: list[Any]):
    asked: Any = {"model": "small", "messages": messages, "max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    usages = [one.model_copy(update={"prompt_tokens_details": None}) for one in (chunks[-1].usage, whole.usage) if one]
    assert len(usages) == 2
    assert usages[0] == usages[1]
    assert len({chunk.id for chunk in chunks}) == 1


def test_streams_of_many_are_not_mixed(client: openai.OpenAI):
    def asked(number: int) -> Any:
        said = [{"role": "user", "content": f"question {number} " * (1 + number % 4)}]
        return {"model": "small", "messages": said, "max_tokens": 10}

    def streamed(number: int) -> str:
        chunks = client.chat.completions.create(**asked(number), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(streamed, range(12)))
    alone = [client.chat.completions.create(**asked(number)).choices[0].message.content for number in range(12)]
    assert together == alone
    assert len(set(alone)) > 6


def test_stop_is_not_told(client: openai.OpenAI, messages: list[Any]):
    asked: Any = {"model": "small", "messages": messages, "max_tokens": 24}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert len(whole) > 4
    stop = whole[3:5]
    chunks = list(client.chat.completions.create(**asked, stop=stop, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("spelled", ["structured_outputs", "guided_choice"])
def test_choices_are_scored(client: openai.OpenAI, messages: list[Any], spelled: str):
    body = {"structured_outputs": {"choice": CHOICES}} if spelled == "structured_outputs" else {spelled: CHOICES}
    done = client.chat.completions.create(
        model="small", messages=messages, extra_body=body, logprobs=True, top_logprobs=5
    )
    choice: Any = done.choices[0]
    assert choice.message.content in CHOICES
    assert choice.probabilities[choice.message.content] == max(choice.probabilities.values())
    assert sum(choice.probabilities.values()) == pytest.approx(1)
    assert list(choice.probabilities) == CHOICES
    first = choice.logprobs.content[0]
    assert first.logprob in [one.logprob for one in first.top_logprobs]
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


def test_a_choice_has_the_probability_of_its_tokens(client: openai.OpenAI, twins: Any):
    twin = twins("qwen2_vl")
    row = twin.encoder.encode(Example("1", (Text("colour?"),), task="talk"), labelled=False)
    end = twin.model.frontend.tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels = LabelTokens(tuple(CHOICES), tuple((*twin.encoder.tokens(one), end) for one in CHOICES))
    (expected,) = score_labels(twin.model, [row], [labels])
    chances = np.exp(expected - np.logaddexp.reduce(expected))
    said: Any = [{"role": "user", "content": "colour?"}]
    done: Any = client.chat.completions.create(model="small", messages=said, extra_body={"guided_choice": CHOICES})
    assert list(done.choices[0].probabilities.values()) == pytest.approx(chances.tolist(), abs=1e-4)


def schema(**properties: Any) -> Any:
    value = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": value}}


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_a_choice(client: openai.OpenAI, messages: list[Any], stream: bool):
    labels = ['a "b"', "红色\n", "c"]
    form = schema(label={"type": "string", "enum": labels})
    asked: Any = {"model": "small", "messages": messages, "response_format": form}
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content
    assert json.loads(text)["label"] in labels
    assert text.startswith('{"label": "')


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_reason_and_choice(client: openai.OpenAI, messages: list[Any], stream: bool):
    form = schema(reason={"type": "string"}, label={"enum": CHOICES}, sure={"const": "yes"}, more={"type": "string"})
    asked: Any = {"model": "small", "messages": messages, "response_format": form, "max_tokens": 9}
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content
    value = json.loads(text)
    assert list(value) == ["reason", "label", "sure", "more"]
    assert value["label"] in CHOICES
    assert value["sure"] == "yes"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "gpt"}, "expected 'small', found 'gpt'"),
        ({"n": 2}, "n: "),
        ({"max_tokens": 5000}, "max_tokens: expected at most 1024, found 5000"),
        ({"top_logprobs": 3}, "top_logprobs: expected logprobs to be true"),
        ({"tools": []}, "tools: unknown parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": schema(x={"type": "number"})}, "schema.properties.x: expected type string"),
        ({"extra_body": {"guided_choice": []}}, "choice: expected 1 to 1000 texts, found 0"),
        ({"extra_body": {"guided_choice": ["a", "a"]}}, "expected each text once"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "expected the last one to be the user's"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, "expected at most 4096 tokens"),
    ],
)  # fmt: skip
def test_refusals(client: openai.OpenAI, changed: dict[str, Any], told: str):
    asked: Any = {"model": "small", "messages": [{"role": "user", "content": "hello"}], **changed}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        client.chat.completions.create(**asked)
    assert told in error.value.message


def test_is_a_server_for_the_engine_api(server: Running, twins: Any, mixed: list[Example]):
    twin = twins("qwen2_vl")
    rows = [(row, twin.encoder.length(row).tokens) for row in mixed[:8]]
    local = LocalEngine(twin.model, twin.encoder, pack_tokens=4096, workers=2)
    expected = {one.id: one for many in local.predict(rows) for one in many}
    local.close()
    settings = ApiSettings(url=f"{server.url}/v1", retries=0, answer_retries=0, logprobs=False)
    engine = ApiEngine(twin.encoder, twin.model.frontend.tokenizer, settings)
    found = {one.id: one for many in engine.predict(rows) for one in many}
    engine.close()
    assert {id_: one.label for id_, one in found.items()} == {id_: one.label for id_, one in expected.items()}
    assert {id_: one.notes["tokens"] for id_, one in found.items()} == {
        id_: one.notes["tokens"] for id_, one in expected.items()
    }
