"""Test chat prompts made of messages, with the slot right before the question."""

import pytest

from spring_rag.bridge.chats import chat_prompt
from spring_rag.bridge.marks import FOLLOWING_MARK, MARK, split
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Slot, ToolCall


def shown(*messages: str) -> list[str]:
    """Messages as `role: text`, with `|` for the slot and `>` for one whose question follows, in and out."""
    pairs = [message.split(": ", 1) for message in messages]
    prompt = chat_prompt(
        [Message(role, split(text.replace("|", MARK).replace(">", FOLLOWING_MARK))) for role, text in pairs]
    )
    return [
        f"{each.role}: {''.join('|' if isinstance(part, Slot) else part.text for part in each.parts)}"
        for each in prompt.messages
    ]


def test_roles_of_other_makers():
    given = ["developer: a", "human: b", "ai: c", "user: d", "chatbot: e", "model: f", "tool: g"]
    roles = [message.split(":")[0] for message in shown(*given)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "assistant", "tool"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["system: c>", "user: q"], ["system: c|", "user: q"]),
        (["system: c>Be brief.", "user: q"], ["system: cBe brief.|", "user: q"]),
        (["system: c>", "user: q", "user: r"], ["system: c|", "user: q", "user: r"]),
        (["user: c>Be brief.", "user: q"], ["user: cBe brief.|", "user: q"]),
        (
            ["system: c>Be brief.", "user: p", "assistant: a", "user: q"],
            ["system: cBe brief.", "user: p", "assistant: a", "user: |q"],
        ),
        (["system: c>", "assistant: a"], ["system: c|", "assistant: a"]),
        (["user: q", "assistant: a", "tool: c|q"], ["user: q", "assistant: a", "tool: c|q"]),
        (
            ["user: q", "assistant: a", "tool: c|q", "tool: d|r"],
            ["user: q", "assistant: a", "tool: cq", "tool: d|r"],
        ),
        (["user: c|q", "assistant: a", "tool: d|r"], ["user: cq", "assistant: a", "tool: d|r"]),
    ],
)
def test_a_slot_comes_right_before_the_question_that_follows(given, expected):
    assert shown(*given) == expected


def test_a_slot_stays_where_its_author_put_it():
    given = ["system: c|Be brief.", "user: p", "assistant: a", "user: q"]
    assert shown(*given) == given


def test_slots_of_answered_questions_are_left_out_beside_another():
    history = ["user: old|p", "assistant: a"]
    assert shown(*history, "user: c|q") == ["user: oldp", "assistant: a", "user: c|q"]
    assert shown("system: c|", *history, "user: q") == ["system: c|", "user: oldp", "assistant: a", "user: q"]
    assert shown(*history, "user: q") == [*history, "user: q"]


@pytest.mark.parametrize("given", [["user: a|b|"], ["system: c|", "user: |q"]])
def test_two_slots_are_refused(given):
    with pytest.raises(PromptError, match="one slot"):
        shown(*given)


def test_results_get_the_names_of_their_tools():
    calls = (ToolCall("search", {}, "1"), ToolCall("look_up", {}, "2"))
    asked = Message("ai", (), calls)
    results = [Message("tool", split("a"), tool_call_id="2"), Message("tool", split("b"), tool_call_id="3")]
    prompt = chat_prompt([Message("human", split("q")), asked, *results])
    assert [message.name for message in prompt.messages] == [None, None, "look_up", None]
    assert prompt.messages[1].tool_calls == calls
