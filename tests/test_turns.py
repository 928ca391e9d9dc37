"""Chats for chat templates that want user and assistant to take turns."""

import copy

import pytest

from spring_rag.encoding import encode
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Prompt, Slot, Text
from spring_rag.turns import in_turns

TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
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
    assert in_turns(FULL, with_template(ANY)) is FULL
    turns = chat(("user", "Who?"), ("assistant", "Hale."))
    assert in_turns(turns, with_template(TURNS)) is turns


def test_a_template_that_wants_turns_gets_turns(with_template):
    assert in_turns(FULL, with_template(TURNS)) == chat(
        ("user", "Facts.", "|", "\n\n", "Who?"), ("assistant", "Hale."), ("user", "When?", "\n\n", "Where?")
    )


def test_without_a_template_the_error_is_left_to_encoding(with_template):
    prompt = in_turns(chat(("system", "Facts."), ("user", "Who?")), with_template(None))
    assert [message.role for message in prompt.messages] == ["user"]
    with pytest.raises(PromptError, match="no chat template"):
        encode(prompt, with_template(None))
