"""Prompts with tools on a real server: every step of an agent gives there what it gives here."""

import copy

import pytest
from questions import same
from servers import vllm_server
from tiny import save_tiny
from tool_templates import TEMPLATE

from spring_rag import SpringModel
from spring_rag.prompt import ANY_TOOL, Message, Prompt, Slot, Text, ToolCall

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record")

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the documents.",
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
        },
    },
)
QUESTION = Message("user", (Text("Who built the lighthouse?"),))
CALLED = Message("assistant", (), (ToolCall("search", {"query": "the lighthouse </s>"}, "abcdefghi"),))
FOUND = (
    Text("[1] Hale and Sons built it.\n\n"),
    Slot(),
    Text("Question: Who built the lighthouse?\nAnswer:"),
)
RESULT = Message("tool", FOUND, tool_call_id="abcdefghi", name="search")

STEPS = [
    Prompt(messages=(QUESTION,), tools=TOOLS),
    Prompt(messages=(QUESTION,), tools=TOOLS, tool_choice=ANY_TOOL),
    Prompt(messages=(QUESTION, CALLED, RESULT), tools=TOOLS),
]


def test_every_step_is_the_same_as_here(tmp_path, tokenizer, logs):
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    folder, tokens = save_tiny("llama", tmp_path, own)
    expected = SpringModel.from_pretrained(folder, tokens=tokens).generate(STEPS, max_new_tokens=12)
    assert [each.usage.virtual for each in expected] == [0, 0, 50]
    with vllm_server(folder, logs / "tools.log") as server:
        remote = SpringModel.from_pretrained(folder, tokens=tokens, base_url=server.url)
        found = remote.generate(STEPS, max_new_tokens=12)
        assert same(found, expected) is None
        streams = [remote.stream(step, max_new_tokens=12) for step in STEPS]
        assert ["".join(stream) for stream in streams] == [each.text for each in expected]
