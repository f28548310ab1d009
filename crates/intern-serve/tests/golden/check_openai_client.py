"""Asks a running server through the official client: every call shape, whole and streamed, and errors.

    intern serve api MODEL --port 8000
    pip install openai
    python crates/intern-serve/tests/golden/check_openai_client.py http://127.0.0.1:8000/v1

Needs a model with a chat template; whether it answers sensibly does not matter here.
With `--calls` the model must call the tool `add` when it can (the chain model of the tests does).
"""

import argparse

import openai
from openai import OpenAI

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {"type": "object", "properties": {"x": {"type": "number"}}},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--key", default="unused")
    parser.add_argument("--calls", action="store_true")
    args = parser.parse_args()
    client = OpenAI(base_url=args.url, api_key=args.key, max_retries=0)

    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    print("models:", model)

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count to three."}]
    fixed = dict(model=model, messages=messages, max_tokens=24, temperature=0, seed=1)
    whole = client.chat.completions.create(**fixed, logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert choice.logprobs.content[0].top_logprobs[0].logprob == choice.logprobs.content[0].logprob
    text, usage, finish = "", None, None
    for chunk in client.chat.completions.create(**fixed, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    assert text == (choice.message.content or ""), (text, choice.message.content)
    assert (usage, finish) == (whole.usage, choice.finish_reason), (usage, whole.usage)
    print("chat, whole and streamed:", repr(text[:60]))

    with client.chat.completions.stream(**fixed) as stream:
        final = stream.get_final_completion()
    assert (final.choices[0].message.content or "") == text
    print("the client's stream helper: same")

    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    several = client.chat.completions.create(model=model, messages=parts, n=3, max_completion_tokens=8, stop=["."])
    assert [c.index for c in several.choices] == [0, 1, 2]
    print("n, content parts, max_completion_tokens, stop: fine")

    tools = dict(fixed, max_tokens=64, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False)
    answer = client.chat.completions.create(**tools).choices[0]
    calls: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**tools, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, ["", "", ""])
            call[0] += part.id or ""
            call[1] += part.function.name or ""
            call[2] += part.function.arguments or ""
    expected = [[c.id, c.function.name, c.function.arguments] for c in answer.message.tool_calls or []]
    assert [calls[i] for i in sorted(calls)] == expected
    if args.calls:
        assert answer.finish_reason == "tool_calls" and expected[0][1] == "add", answer
        messages = messages + [
            answer.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": expected[0][0], "content": "2"},
        ]
        client.chat.completions.create(model=model, messages=messages, tools=[TOOL], max_tokens=4)
    print("tools, whole and streamed:", expected or "none called")

    for prompt in ("One two", ["One two", "three"], [1, 2, 3], [[1, 2, 3], [4, 5]]):
        answers = client.completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0).choices
        streamed = ["" for _ in answers]
        for chunk in client.completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == [a.text for a in answers], (streamed, answers)
    echo = client.completions.create(model=model, prompt="One two", max_tokens=1, echo=True, logprobs=2).choices[0]
    assert echo.text.startswith("One two") and echo.logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in echo.logprobs.token_logprobs[1:])
    lengths = {len(x) for x in (echo.logprobs.tokens, echo.logprobs.text_offset, echo.logprobs.top_logprobs)}
    assert lengths == {len(echo.logprobs.token_logprobs)}
    print("completions: four prompt shapes, streamed, echo with logprobs")

    def refuses(kind: type, param: str | None, call) -> None:
        try:
            call()
        except kind as error:
            assert error.param == param, error
            assert "hint:" in str(error) or param, error
        else:
            raise AssertionError(f"{kind} expected")

    chat = client.chat.completions.create
    refuses(openai.NotFoundError, "model", lambda: chat(model="gpt-9", messages=messages))
    refuses(openai.BadRequestError, "temperature", lambda: chat(model=model, messages=messages, temperature=-1))
    refuses(openai.BadRequestError, "messages", lambda: chat(model=model, messages=[]))
    refuses(
        openai.BadRequestError,
        "tool_choice",
        lambda: chat(model=model, messages=messages, tools=[TOOL], tool_choice="required"),
    )
    refuses(
        openai.BadRequestError,
        "response_format",
        lambda: chat(model=model, messages=messages, response_format={"type": "json_object"}),
    )
    refuses(
        openai.BadRequestError,
        "prompt",
        lambda: client.completions.create(model=model, prompt="x" * 10**6, max_tokens=1),
    )
    refuses(
        openai.BadRequestError,
        "suffix",
        lambda: client.completions.create(model=model, prompt="x", suffix="y"),
    )
    print("errors: typed, with their parameters")


if __name__ == "__main__":
    main()
