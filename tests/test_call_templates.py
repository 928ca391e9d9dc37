"""Tools with the chat templates of today's families: shown in the prompt, called in an answer, and shown again with their results."""

import re
from dataclasses import replace

import pytest
from thinking_parts import letters
from tool_families import ARGUMENTS, FAMILIES, REFUSED, SEARCH

from spring_rag.backends.base import Generation, Request, Usage
from spring_rag.backends.decoding import decoder
from spring_rag.call_templates import learned_form, tool_of
from spring_rag.calls import check_takes_tools, part_calls, takes_tools, with_calls
from spring_rag.encoding import encode
from spring_rag.errors import ToolsError
from spring_rag.prompt import Message, Prompt, Slot, Text
from spring_rag.reasoning import part_stream, without_thoughts
from spring_rag.rendering import render
from spring_rag.stream import Stream

PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}}
TOOL = {
    "type": "function",
    "function": {"name": SEARCH, "description": 'Find one\'s "way".', "parameters": PARAMETERS},
}
QUESTION = Message("user", (Text("Who built it?"),))


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def tokenizer(family):
    return letters(family.template, family.special, family.added)


def asked(*further, thinking=True, **settings):
    return Prompt(messages=(QUESTION, *further), tools=(TOOL,), thinking=thinking, **settings)


def generated(tokenizer, text):
    """What a backend gives for an answer whose last token ends it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids[:-1]
    return Generation(decoder(tokenizer)(ids), "stop", Usage(1, 0, 1, len(ids)), tuple(ids))


def read(tokenizer, text, prompt):
    encoded = encode(prompt, tokenizer)
    answer = without_thoughts(generated(tokenizer, text), tokenizer, opened=encoded.thinking)
    return with_calls(answer, Request(encoded, None, None, prompt), tokenizer)


def test_the_prompt_shows_the_tool(family, tokenizer):
    assert takes_tools(tokenizer)
    assert SEARCH in render(asked(), tokenizer).text


def test_a_call_is_read(family, tokenizer):
    found = read(tokenizer, family.written, asked())
    assert [(call.name, dict(call.arguments)) for call in found.tool_calls] == [(SEARCH, ARGUMENTS)]
    assert (found.reasoning, found.text) == (family.thoughts, family.text)


def test_a_streamed_call_is_read(family, tokenizer):
    prompt = asked()
    encoded, whole = encode(prompt, tokenizer), generated(tokenizer, family.written)
    stream = part_stream(Stream(iter_of(whole)), tokenizer, opened=encoded.thinking)
    stream = part_calls(stream, Request(encoded, None, None, prompt), tokenizer)
    assert "".join(stream) == family.text
    assert stream.generation == read(tokenizer, family.written, prompt)


def iter_of(generation):
    yield from generation.text
    yield generation


def test_the_call_and_its_result_come_back(family, tokenizer):
    """As the backbone wrote them, so that the next answer follows from what it said; the result may have a slot."""
    found = read(tokenizer, family.written, asked())
    called = Message("assistant", (Text(found.text),), found.tool_calls)
    result = (Text("[1] Hale.\n"), Slot(), Text("Who?"))
    (call,) = found.tool_calls
    prompt = asked(called, Message("tool", result, tool_call_id=call.id, name=SEARCH))
    assert family.shown in render(prompt, tokenizer).text
    assert tokenizer.decode(encode(prompt, tokenizer).suffix_ids).startswith("Who?")


def test_several_calls_and_their_results_come_back(family, tokenizer):
    """Each with its own result, also where a template takes, or writes, only one call of an answer."""
    (call,) = read(tokenizer, family.written, asked()).tool_calls
    calls = [replace(call, id=f"{call.id[:-1]}{at}", arguments={"query": f"it's {at}"}) for at in range(2)]
    results = [
        Message("tool", (Text(f"result {at}"),), tool_call_id=each.id, name=SEARCH)
        for at, each in enumerate(calls)
    ]
    text = render(asked(Message("assistant", (), tuple(calls)), *results), tokenizer).text
    for at in range(2):
        assert re.search(rf"it(&#39;|\\\\?u0027|\\?')s {at}", text)
        assert text.count(f"result {at}") == 1
    assert text.index("result 0") < text.index("result 1")


def test_a_call_that_must_be_is_begun_as_the_backbone_begins_it(family, tokenizer):
    prompt = asked(thinking=False, tool_choice=SEARCH)
    begun = render(prompt, tokenizer).text.removeprefix(render(asked(thinking=False), tokenizer).text)
    assert SEARCH in begun
    assert begun in family.shown


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_for_tools_says_so(name):
    tokenizer = letters(*REFUSED[name])
    assert not takes_tools(tokenizer)
    with pytest.raises(ToolsError, match=r"^the backbone can't be given tools: .*\Z") as error:
        check_takes_tools(tokenizer)
    assert "\n" not in str(error.value)


def test_templates_without_calls_have_no_form():
    silent = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for template in (silent, "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + silent):
        assert learned_form(letters(template)) is None


def test_a_tool_that_takes_nothing():
    assert tool_of("x")["function"]["name"] == "x"
