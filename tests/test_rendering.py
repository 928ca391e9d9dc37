"""Test chats for chat templates that require user and assistant to alternate."""

import copy
from dataclasses import replace

import pytest

from spring_rag.call_templates import tool_of
from spring_rag.encoding import encode
from spring_rag.errors import PromptError
from spring_rag.model import SpringModel
from spring_rag.prompt import Message, Prompt, RagTemplate, Slot, Text, ToolCall
from spring_rag.rendering import render

TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
)
QUIET = (
    "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}{% set ns.on = false %}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<think>' if ns.on else '<think></think>' }}{% endif %}"
)
ANY = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"


@pytest.fixture
def with_template(tokenizer):
    def make(template):
        chatting = copy.deepcopy(tokenizer)
        chatting.chat_template = template
        return chatting

    return make


def chat(*messages):
    return Prompt(
        messages=tuple(
            Message(role, tuple(Slot() if text == "|" else Text(text) for text in texts))
            for role, *texts in messages
        )
    )


FULL = chat(
    ("system", "Facts.", "|"), ("user", "Who?"), ("assistant", "Hale."), ("user", "When?"), ("user", "Where?")
)


def test_a_template_that_takes_it_gets_it_as_it_is(with_template):
    assert render(FULL, with_template(ANY)).messages == FULL.messages
    turns = chat(("user", "Who?"), ("assistant", "Hale."))
    assert render(turns, with_template(TURNS)).messages == turns.messages


def test_a_template_that_wants_turns_gets_turns(with_template):
    turns = chat(
        ("user", "Facts.", "|", "\n\n", "Who?"), ("assistant", "Hale."), ("user", "When?", "\n\n", "Where?")
    )
    assert render(FULL, with_template(TURNS)) == render(turns, with_template(TURNS))
    assert render(FULL, with_template(TURNS)).messages == turns.messages


@pytest.mark.parametrize("refuses", [True, False], ids=["refused", "dropped"])
def test_a_template_that_takes_one_call_of_an_answer_gets_one_after_another(with_template, refuses):
    refusing = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    tokenizer = with_template(
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}"
        + refusing * refuses
        + "{% set f = m.tool_calls[0].function %}<call>{{ f.name + '(' }}{{ f.arguments | tojson }}{{ ')' }}{% endif %}{% endfor %}"
    )
    made = tuple(ToolCall("search", {"q": each}, each) for each in ("call-a", "call-b"))
    results = (Message("tool", (Text(f"result {each.id}"),), tool_call_id=each.id) for each in reversed(made))
    messages = (Message("user", (Text("q"),)), Message("assistant", (Text("Both."),), made), *results)
    assert render(Prompt(messages=messages, tools=(tool_of("search"),)), tokenizer).text == (
        'search[user]q[assistant]Both.<call>search({"q": "call-a"})[tool]result call-a'
        '[assistant]<call>search({"q": "call-b"})[tool]result call-b'
    )


def test_the_core_answers_with_a_system_message_that_the_template_refuses(llama, with_template):
    template = RagTemplate(chat=True, system="Be brief.")
    answer = SpringModel(llama, with_template(TURNS)).answer("Who?", ["Hale."], template=template)
    assert isinstance(answer, str)


def test_without_a_template_encoding_says_so(with_template):
    with pytest.raises(PromptError, match="no chat template"):
        encode(chat(("system", "Facts."), ("user", "Who?")), with_template(None))


def test_a_refusal_names_the_roles_that_were_asked_for(with_template):
    with pytest.raises(PromptError, match="with the roles assistant, user, user: roles must alternate"):
        encode(chat(("assistant", "Hale."), ("user", "Who?"), ("user", "When?")), with_template(TURNS))


def test_a_template_that_is_asked_in_words_not_to_think_gets_them_in_the_system_message(with_template):
    tokenizer = with_template(QUIET)
    quiet = replace(chat(("user", "Who?")), thinking=False)
    assert render(quiet, tokenizer).text == "[system]/no_think[user]Who?<think></think>"
    quiet = replace(chat(("system", "Facts."), ("user", "Who?")), thinking=False)
    assert render(quiet, tokenizer).text == "[system]Facts.\n/no_think[user]Who?<think></think>"
    for thinking in (None, True):
        assert render(replace(quiet, thinking=thinking), tokenizer).text == "[system]Facts.[user]Who?<think>"
