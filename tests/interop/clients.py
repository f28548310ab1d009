#!/usr/bin/env python3
"""The official openai and anthropic clients against a running server: every call shape, streamed
and not, errors included; answers are checked against OpenAI's own OpenAPI document.

usage: clients.py URL [--key KEY] [--openapi FILE]
  URL        http://127.0.0.1:8000 (intern serve api)
  --openapi  openai-openapi's openapi.json; without it, shapes are not validated
needs: openai anthropic jsonschema

Prints one line per call and exits with 1 if any fails.
"""
import argparse
import asyncio
import base64
import json
import struct
import sys
import traceback

import anthropic
import httpx
import openai
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

a = argparse.ArgumentParser()
a.add_argument("url")
a.add_argument("--key", default="none")
a.add_argument("--openapi")
a = a.parse_args()
url = a.url.rstrip("/")
DIRECT = {"trust_env": False, "timeout": 120}  # no proxy stands before a server on this machine
http = httpx.Client(**DIRECT)
oai = openai.OpenAI(base_url=url + "/v1", api_key=a.key, max_retries=0, http_client=openai.DefaultHttpxClient(**DIRECT))
ant = anthropic.Anthropic(base_url=url, api_key=a.key, max_retries=0, http_client=anthropic.DefaultHttpxClient(**DIRECT))
MODEL = oai.models.list().data[0].id
USER = [{"role": "user", "content": "What is 2 + 3?"}]
PARAMETERS = {"type": "object", "properties": {"expression": {"type": "string", "maxLength": 12}},
              "required": ["expression"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "calculator", "description": "Calculates.", "parameters": PARAMETERS}}
FLAT = {"type": "function", "name": "calculator", "description": "Calculates.", "parameters": PARAMETERS}
CLAUDE_TOOL = {"name": "calculator", "description": "Calculates.", "input_schema": PARAMETERS}
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["sum"], "additionalProperties": False}
document = json.load(open(a.openapi)) if a.openapi else None


def allow_null(schema):
    """`nullable: true`, which OpenAPI 3.1 has no more and the document still uses, as a type."""
    if isinstance(schema, list):
        return [allow_null(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {k: allow_null(v) for k, v in schema.items()}
    if schema.get("nullable") is True:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


document = allow_null(document)
failed, skipped, count = [], [], 0


def schema_of(pointer):
    registry = Registry().with_resource("doc:", Resource.from_contents(document, default_specification=DRAFT202012))
    return Draft202012Validator({"$ref": "doc:#" + pointer}, registry=registry)


def conforms(value, name):
    """The JSON of `value` satisfies a schema of OpenAI's document."""
    if document is None:
        return
    value = value if isinstance(value, (dict, list)) else value.model_dump(mode="json", exclude_unset=True)
    if "model" in value:
        value = {**value, "model": "gpt-4o"}  # the document lists models by name in places
    errors = sorted(schema_of("/components/schemas/" + name).iter_errors(value), key=lambda e: list(e.path))
    assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message[:300]}"


def check(work):
    """Runs one call and reports it."""
    global count
    count += 1
    try:
        work()
        print(f"ok     {work.__name__}", flush=True)
    except (openai.BadRequestError, anthropic.BadRequestError) as error:
        if "not supported yet" in str(error):
            skipped.append(work.__name__)
            print(f"absent {work.__name__}: {error.message}", flush=True)
            return
        failed.append(work.__name__)
        traceback.print_exc()
    except Exception:
        failed.append(work.__name__)
        print(f"FAILED {work.__name__}", flush=True)
        traceback.print_exc()


def refused(status, call, kinds=(openai.APIStatusError, anthropic.APIStatusError)):
    try:
        call()
    except kinds as error:
        assert error.status_code == status, f"status {error.status_code}, expected {status}"
        return error
    raise AssertionError("not refused")


# --- models, small routes

@check
def models():
    conforms(oai.models.list(), "ListModelsResponse")
    conforms(oai.models.retrieve(MODEL), "Model")
    assert refused(404, lambda: oai.models.retrieve("nothing")).code == "model_not_found"


@check
def small_routes():
    assert http.get(url + "/health").json() == {"status": "ok"}
    assert "<html" in http.get(url + "/").text
    assert http.get(url + "/openapi.json").json()["openapi"].startswith("3.1")
    key = {"authorization": "Bearer " + a.key}
    assert "vllm:num_requests_running" in http.get(url + "/metrics", headers=key).text
    ids = http.post(url + "/tokenize", json={"prompt": "one two"}, headers=key).json()["tokens"]
    assert "one two" in http.post(url + "/detokenize", json={"tokens": ids}, headers=key).json()["prompt"]


# --- chat completions

@check
def chat():
    r = oai.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=8, seed=1)
    conforms(r, "CreateChatCompletionResponse")
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens


@check
def chat_with_every_parameter():
    r = oai.chat.completions.create(
        model=MODEL, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        max_tokens=6, n=2, seed=3, temperature=0.9, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5,
        logit_bias={"5": -100}, logprobs=True, top_logprobs=3, stop=["zzz"], user="me", metadata={"a": "b"},
        store=False, service_tier="auto", reasoning_effort="low", parallel_tool_calls=True,
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "typical_p": 0.95})
    conforms(r, "CreateChatCompletionResponse")
    assert len(r.choices) == 2 and len(r.choices[0].logprobs.content[0].top_logprobs) == 3


@check
def chat_streamed():
    whole = oai.chat.completions.create(model=MODEL, messages=USER, max_tokens=12, temperature=0)
    chunks = list(oai.chat.completions.create(model=MODEL, messages=USER, max_tokens=12, temperature=0, stream=True,
                                              stream_options={"include_usage": True}))
    for chunk in chunks:
        conforms(chunk, "CreateChatCompletionStreamResponse")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices


@check
def chat_stream_helper():
    with oai.chat.completions.stream(model=MODEL, messages=USER, max_tokens=8) as stream:
        kinds = {event.type for event in stream}
        assert "chunk" in kinds and stream.get_final_completion().choices[0].message.role == "assistant"


@check
def chat_with_tools():
    r = oai.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], max_tokens=60, temperature=0)
    conforms(r, "CreateChatCompletionResponse")
    history = USER + [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_0", "type": "function", "function": {"name": "calculator", "arguments": '{"expression":"2+3"}'}}]},
        {"role": "tool", "tool_call_id": "call_0", "content": "5"}]
    conforms(oai.chat.completions.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=8), "CreateChatCompletionResponse")


@check
def chat_must_call():
    for choice in ["required", {"type": "function", "function": {"name": "calculator"}}]:
        r = oai.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], tool_choice=choice,
                                        parallel_tool_calls=False, max_tokens=100)
        conforms(r, "CreateChatCompletionResponse")
        [call] = r.choices[0].message.tool_calls
        assert call.function.name == "calculator" and r.choices[0].finish_reason == "tool_calls"
        assert set(json.loads(call.function.arguments)) == {"expression"}
        chunks = list(oai.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], tool_choice=choice,
                                                  parallel_tool_calls=False, max_tokens=100, stream=True))
        parts = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
        assert parts[0].id and parts[0].function.name == "calculator"
        assert set(json.loads("".join(p.function.arguments or "" for p in parts))) == {"expression"}


@check
def chat_must_not_call():
    r = oai.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], tool_choice="none", max_tokens=30)
    assert not r.choices[0].message.tool_calls


@check
def chat_in_json():
    for form in [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}]:
        r = oai.chat.completions.create(model=MODEL, messages=USER, response_format=form, max_tokens=200, temperature=1)
        if r.choices[0].finish_reason == "stop":
            value = json.loads(r.choices[0].message.content)
            assert form["type"] == "json_object" or set(value) == {"sum"}


@check
def chat_guided():
    make = lambda **extra: oai.chat.completions.create(model=MODEL, messages=USER, max_tokens=20, extra_body=extra).choices[0].message.content
    assert make(guided_choice=["yes", "no"]) in ("yes", "no")
    assert make(guided_regex="[0-9]{3}").isdigit()
    assert make(structured_outputs={"choice": ["a"]}) == "a"


@check
def chat_refusals():
    create = oai.chat.completions.create
    for bad, param in [
        (dict(messages=[]), "messages"), (dict(temperature=-1), "temperature"), (dict(n=0), "n"), (dict(top_p=3), "top_p"),
        (dict(logit_bias={"5": 1000}), "logit_bias"), (dict(top_logprobs=2), "top_logprobs"), (dict(modalities=["audio"]), "modalities"),
        (dict(tool_choice="required"), "tool_choice"), (dict(extra_body={"no_such_thing": 1}), "no_such_thing"),
        (dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "messages[0].content[0]"),
    ]:
        error = refused(400, lambda: create(**{"model": MODEL, "messages": USER, **bad}))
        assert error.param == param, f"{error.param} instead of {param}"
    assert refused(404, lambda: create(model="gpt-9", messages=USER)).code == "model_not_found"
    long = [{"role": "user", "content": "word " * 100_000}]
    assert refused(400, lambda: create(model=MODEL, messages=long)).code == "context_length_exceeded"
    if a.key != "none":
        refused(401, lambda: oai.with_options(api_key="wrong").models.list(), openai.AuthenticationError)


# --- completions, embeddings

@check
def completions():
    make = lambda **k: oai.completions.create(model=MODEL, max_tokens=5, temperature=0, **k)
    conforms(make(prompt="one two"), "CreateCompletionResponse")
    ids = http.post(url + "/tokenize", json={"prompt": "one two"}, headers={"authorization": "Bearer " + a.key}).json()["tokens"]
    assert make(prompt=ids).choices[0].text == make(prompt="one two").choices[0].text
    assert len(make(prompt=["one", "two"], n=2, logprobs=2).choices) == 4
    assert len(make(prompt=[ids, ids]).choices) == 2
    echo = oai.completions.create(model=MODEL, prompt="one two", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert echo.text == "one two" and echo.logprobs.token_logprobs[0] is None
    text = "".join(c.choices[0].text for c in make(prompt="one two", stream=True) if c.choices)
    assert text == make(prompt="one two").choices[0].text
    assert refused(400, lambda: make(prompt="a", suffix="b")).param == "suffix"
    assert refused(400, lambda: make(prompt="a", best_of=4)).param == "best_of"


@check
def embeddings():
    r = oai.embeddings.create(model=MODEL, input=["one", "two"])  # the client asks for base64
    floats = oai.embeddings.create(model=MODEL, input="one", encoding_format="float")
    conforms(floats, "CreateEmbeddingResponse")
    first = r.data[0].embedding
    if isinstance(first, str):
        raw = base64.b64decode(first)
        first = struct.unpack(f"<{len(raw) // 4}f", raw)
    assert max(abs(x - y) for x, y in zip(first, floats.data[0].embedding)) < 1e-6
    assert refused(400, lambda: oai.embeddings.create(model=MODEL, input="x", dimensions=3)).param == "dimensions"


# --- responses

@check
def responses():
    r = oai.responses.create(model=MODEL, input="What is 2 + 3?", instructions="Be brief.", max_output_tokens=12, metadata={"a": "b"})
    conforms(r, "Response")
    assert isinstance(r.output_text, str)
    conforms(oai.responses.retrieve(r.id), "Response")
    assert oai.responses.input_items.list(r.id).data[0].role == "user"
    again = oai.responses.create(model=MODEL, input="And 4 + 5?", previous_response_id=r.id, max_output_tokens=8)
    assert again.usage.input_tokens > r.usage.input_tokens
    refused(400, lambda: oai.responses.cancel(r.id))
    oai.responses.delete(r.id)
    refused(404, lambda: oai.responses.retrieve(r.id))


@check
def responses_streamed():
    events = list(oai.responses.create(model=MODEL, input=[{"role": "user", "content": "Hi"}], max_output_tokens=10, temperature=0, stream=True))
    for event in events:
        conforms(event, "ResponseStreamEvent")
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    with oai.responses.stream(model=MODEL, input="Hi", max_output_tokens=5) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().status in ("completed", "incomplete")


@check
def responses_with_tools():
    r = oai.responses.create(model=MODEL, input="2 + 3?", tools=[FLAT], max_output_tokens=40, temperature=0)
    conforms(r, "Response")
    items = [{"role": "user", "content": "2 + 3?"},
             {"type": "function_call", "call_id": "c", "name": "calculator", "arguments": '{"expression":"2+3"}'},
             {"type": "function_call_output", "call_id": "c", "output": "5"}]
    conforms(oai.responses.create(model=MODEL, input=items, tools=[FLAT], max_output_tokens=8, store=False), "Response")


@check
def responses_must_call():
    events = list(oai.responses.create(model=MODEL, input="2 + 3?", tools=[FLAT], tool_choice="required",
                                       parallel_tool_calls=False, max_output_tokens=100, stream=True))
    for event in events:
        conforms(event, "ResponseStreamEvent")
    [call] = events[-1].response.output
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"expression"}


@check
def responses_in_json():
    r = oai.responses.create(model=MODEL, input="2 + 3?", max_output_tokens=100,
                             text={"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}})
    assert set(json.loads(r.output_text)) == {"sum"}


@check
def responses_logprobs():
    r = oai.responses.create(model=MODEL, input="Hi", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)
    conforms(r, "Response")
    assert len(r.output[0].content[0].logprobs[0].top_logprobs) == 2
    assert oai.responses.input_tokens.count(model=MODEL, input="Hi").input_tokens == r.usage.input_tokens


@check
def responses_refusals():
    create = oai.responses.create
    for bad, param in [(dict(input=[]), "input"), (dict(tools=[{"type": "web_search"}]), "tools[0].type"), (dict(background=True), "background"),
                       (dict(truncation="auto"), "truncation"), (dict(previous_response_id="no"), "previous_response_id"),
                       (dict(conversation="c"), "conversation")]:
        assert refused(400, lambda: create(**{"model": MODEL, "input": "x", **bad})).param == param


# --- Anthropic's messages

GREEDY = {"extra_body": {"temperature": 0}}  # the newest clients have no parameter for it


@check
def messages():
    r = ant.messages.create(model=MODEL, max_tokens=8, messages=USER, system="Be brief.", stop_sequences=["zzz"],
                            metadata={"user_id": "me"}, extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40})
    assert r.type == "message" and r.stop_reason in ("max_tokens", "end_turn") and r.usage.output_tokens <= 8
    counted = ant.messages.count_tokens(model=MODEL, messages=USER, system="Be brief.")
    assert counted.input_tokens == r.usage.input_tokens + r.usage.cache_read_input_tokens


@check
def messages_streamed():
    whole = ant.messages.create(model=MODEL, max_tokens=12, messages=USER, **GREEDY)
    with ant.messages.stream(model=MODEL, max_tokens=12, messages=USER, **GREEDY) as stream:
        assert "".join(stream.text_stream) == "".join(b.text for b in whole.content if b.type == "text")
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens
    kinds = [e.type for e in ant.messages.create(model=MODEL, max_tokens=4, messages=USER, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


@check
def messages_with_tools():
    ant.messages.create(model=MODEL, max_tokens=40, messages=USER, tools=[CLAUDE_TOOL], tool_choice={"type": "auto"}, **GREEDY)
    history = USER + [
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "t1", "name": "calculator", "input": {"expression": "2+3"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]}]
    ant.messages.create(model=MODEL, max_tokens=8, messages=history, tools=[CLAUDE_TOOL])


@check
def messages_must_call():
    for choice in [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "calculator", "disable_parallel_tool_use": True}]:
        r = ant.messages.create(model=MODEL, max_tokens=100, messages=USER, tools=[CLAUDE_TOOL], tool_choice=choice)
        assert r.stop_reason == "tool_use" and set(r.content[-1].input) == {"expression"}
        with ant.messages.stream(model=MODEL, max_tokens=100, messages=USER, tools=[CLAUDE_TOOL], tool_choice=choice) as stream:
            for _ in stream:
                pass
            assert set(stream.get_final_message().content[-1].input) == {"expression"}


@check
def messages_refusals():
    create = ant.messages.create
    for bad in [dict(max_tokens=0), dict(messages=[]), dict(extra_body={"temperature": -1}), dict(tool_choice={"type": "any"}),
                dict(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}])]:
        error = refused(400, lambda: create(**{"model": MODEL, "max_tokens": 4, "messages": USER, **bad}))
        assert error.body["error"]["type"] == "invalid_request_error", error.body
    assert refused(404, lambda: create(model="claude-9", max_tokens=4, messages=USER)).body["error"]["type"] == "not_found_error"


# --- asynchronous clients, and going away in the middle

@check
def asynchronous():
    async def work():
        client = openai.AsyncOpenAI(base_url=url + "/v1", api_key=a.key, http_client=openai.DefaultAsyncHttpxClient(**DIRECT))
        claude = anthropic.AsyncAnthropic(base_url=url, api_key=a.key, http_client=anthropic.DefaultAsyncHttpxClient(**DIRECT))
        jobs = [client.chat.completions.create(model=MODEL, messages=USER, max_tokens=6) for _ in range(8)]
        jobs += [claude.messages.create(model=MODEL, max_tokens=6, messages=USER) for _ in range(8)]
        assert len(await asyncio.gather(*jobs)) == 16
        stream = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=200, stream=True, extra_body={"ignore_eos": True})
        async for _ in stream:
            break
        await stream.close()
        await client.models.list()
    asyncio.run(work())


print(f"{count - len(failed) - len(skipped)} of {count} calls are as they should be"
      + (f"; absent: {', '.join(skipped)}" if skipped else "") + (f"; failed: {', '.join(failed)}" if failed else ""))
sys.exit(bool(failed))
