"""Test tool calls in a backbone's output: whole and streamed, with thoughts, forced, and without tools."""

import pytest
from tool_parts import scripted  # noqa: F401 - a fixture
from tool_templates import TEMPLATE, call

from spring_rag.calls import takes_tools
from spring_rag.prompt import ANY_TOOL, Message, Prompt, Text, ToolCall

TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Find.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    for name in ("search", "look_up")
)
CALL = call("search", '{"query": "who?", "limit": 3}')
ARGUMENTS = {"query": "who?", "limit": 3}


def asked(text="q", **settings):
    return Prompt(messages=(Message("user", (Text(text),)),), **{"tools": TOOLS, **settings})


def names(generation):
    return [(each.name, dict(each.arguments)) for each in generation.tool_calls]


def test_a_call_is_told_apart_from_the_text(scripted):  # noqa: F811
    model = scripted(f"Let me look.\n{CALL}", f"{CALL}\n{call('look_up', '{}')}", "Hale.")
    first, second, third = (model.generate(asked(), max_new_tokens=200)[0] for _ in range(3))
    assert (first.text, names(first)) == ("Let me look.", [("search", ARGUMENTS)])
    assert (second.text, names(second)) == ("", [("search", ARGUMENTS), ("look_up", {})])
    assert (third.text, third.tool_calls) == ("Hale.", ())
    assert first.usage.virtual == 0


def test_ids_repeat_and_differ(scripted):  # noqa: F811
    model = scripted(*[f"{CALL}\n{CALL}"] * 3)
    one, again, other = (model.generate(asked(text), max_new_tokens=200)[0] for text in ("q", "q", "r"))
    ids = [each.id for answer in (one, other) for each in answer.tool_calls]
    assert len(set(ids)) == 4
    assert all(len(each) == 9 and each.isalnum() for each in ids)
    assert one.tool_calls == again.tool_calls


@pytest.mark.parametrize("special", [(), ("<tool_call>", "</tool_call>")])
def test_streamed(scripted, special):  # noqa: F811
    """Its text ends where a call may begin; control tokens that mark calls are seen, though an answer's text has none."""
    model = scripted(f"I < you. Look:\n{CALL}", "a <tool", CALL, special=special)
    stream = model.stream(asked(), max_new_tokens=200)
    pieces = list(stream)
    assert "".join(pieces) == "I < you. Look:" == stream.generation.text
    assert len(pieces) > 3
    assert names(stream.generation) == [("search", ARGUMENTS)]
    stream = model.stream(asked(), max_new_tokens=200)
    assert "".join(stream) == "a <tool"
    if special:
        stream = model.stream(asked(tools=()), max_new_tokens=200)
        assert (
            "".join(stream)
            == stream.generation.text
            == '\n{"name": "search", "arguments": {"query": "who?", "limit": 3}}\n'
        )


def test_a_stream_shows_what_stands_around_a_call(scripted):  # noqa: F811
    texts = (f" Let me look.\n{CALL}\nI will tell you.", f"\n{CALL}\nI will tell you.", f" {CALL}\n")
    model = scripted(*(text for text in texts for _ in range(2)))
    for _ in texts:
        whole = model.generate(asked(), max_new_tokens=200)[0]
        stream = model.stream(asked(), max_new_tokens=200)
        assert "".join(stream) == stream.generation.text == whole.text
        assert names(whole) == [("search", ARGUMENTS)]


def test_an_answer_that_must_be_a_call(scripted):  # noqa: F811
    model = scripted(
        ' {"query": "a"}}\n</tool_call>', 'look_up", "arguments": {}}\n</tool_call>', ' {"query": "a"}}'
    )
    named = model.generate(asked(tool_choice="search"), max_new_tokens=200)[0]
    any_tool = model.generate(asked(tool_choice=ANY_TOOL), max_new_tokens=200)[0]
    stream = model.stream(asked(tool_choice="search"), max_new_tokens=200)
    assert list(stream) == []
    assert names(named) == names(stream.generation) == [("search", {"query": "a"})]
    assert names(any_tool) == [("look_up", {})]
    assert named.text == ""


def test_thoughts_before_a_call(scripted):  # noqa: F811
    template = TEMPLATE.replace(
        "{{ message.content }}",
        "{{ '<think>' + message.reasoning_content + '</think>' if message.reasoning_content }}{{ message.content }}",
    )
    model = scripted(f"<think>I might <tool_call>.</think>{CALL}", template=template)
    answer = model.generate(asked(thinking=True), max_new_tokens=200)[0]
    assert (answer.reasoning, answer.text, names(answer)) == (
        "I might <tool_call>.",
        "",
        [("search", ARGUMENTS)],
    )


def test_a_response_template_of_the_tokenizers_own(scripted):  # noqa: F811
    silent = TEMPLATE.replace("message.tool_calls or []", "[]")
    model = scripted("Look. <call>search(query=who?)</call>", "Hale.", template=silent)
    assert not takes_tools(model.tokenizer)
    model.tokenizer.response_template = {
        "start_anchor": "<s>assistant\n",
        "fields": {
            "content": {},
            "tool_calls": {
                "open_pattern": r"<call>(?P<name>\w+)\(",
                "close": ")</call>",
                "content": "kv-lines",
                "content_args": {"kv_sep": "="},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    }
    assert takes_tools(model.tokenizer)
    called, answered = (model.generate(asked(), max_new_tokens=100)[0] for _ in range(2))
    assert (called.text, names(called)) == ("Look.", [("search", {"query": "who?"})])
    assert (answered.text, answered.tool_calls) == ("Hale.", ())


def test_a_call_goes_back_into_the_next_prompt(scripted):  # noqa: F811
    model = scripted(CALL, "Hale.")
    first = model.generate(asked(), max_new_tokens=200)[0]
    (made,) = first.tool_calls
    assert isinstance(made, ToolCall)
    messages = (
        *asked().messages,
        Message("assistant", (Text(first.text),), first.tool_calls),
        Message("tool", (Text("Hale and Sons."),), tool_call_id=made.id, name=made.name),
    )
    assert model.generate(Prompt(messages=messages, tools=TOOLS), max_new_tokens=20)[0].text == "Hale."
