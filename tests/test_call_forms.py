"""Test forms of calls that are learned from chat templates: the calls that a template writes are read back unchanged."""

import copy
import json

import pytest

from spring_rag.call_forms import JsonForm, NamedForm, PairsForm, PythonForm
from spring_rag.call_templates import learned_form
from spring_rag.templates import apply_template

_HEAD = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
_TAIL = "</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
_EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"


def template(calls: str) -> str:
    return _HEAD + calls + _TAIL


TAGGED = template(
    _EACH
    + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
LISTED = template(
    "{% if m.tool_calls %}[TOOL_CALLS]["
    + _EACH
    + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "{{ c.id }}"}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
)
BARE = template(_EACH + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% endfor %}')
NESTED = template(
    _EACH
    + '<call>{"type": "function", "function": {"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson | tojson }}}}</call>'
    "{% endfor %}"
)
NAMED = template(
    _EACH + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}{% endfor %}"
)
SECTION = template(
    "{% if m.tool_calls %}<calls>"
    + _EACH
    + "<call>functions.{{ f.name }}:{{ loop.index0 }}<args>{{ f.arguments | tojson }}</call>{% endfor %}"
    "</calls>{% endif %}"
)
TEXT_ONLY = template(_EACH + "<call>{{ f.name + '<sep>' + f.arguments }}</call>{% endfor %}")
PAIRS = template(
    _EACH
    + "\n<tool_call>\n<function={{ f.name }}>\n{% for key, value in f.arguments.items() %}<parameter={{ key }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}"
)
KEYED = template(
    _EACH
    + "<tool_call>{{ f.name }}\n{% for key, value in f.arguments.items() %}<arg_key>{{ key }}</arg_key>\n"
    "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
)
PYTHONIC = template(
    "{% if m.tool_calls %}<|call_start|>["
    + _EACH
    + "{{ f.name }}({% for key, value in f.arguments.items() %}{{ key }}={{ value | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}){% if not loop.last %}, {% endif %}{% endfor %}]<|call_end|>{% endif %}"
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Find something.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "limit": {"type": "integer"},
                    "deep": {"type": "boolean"},
                },
            },
        },
    }
    for name in ("search", "look-up")
]
ONE = [("search", {"query": 'who wrote "Ω – 1\\2"?\nand {when}', "limit": 3, "deep": True})]
TWO = [*ONE, ("look-up", {"query": "7"})]


def written(tokenizer, calls, *, as_text=False):
    """What the template writes for calls, after the beginning of the answer."""
    tool_calls = [
        {
            "type": "function",
            "id": f"abcdefgh{number}",
            "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": tool_calls}]
    text = apply_template(chat, tokenizer, {"tools": TOOLS}, add_generation_prompt=False)
    return text.rpartition("<s>assistant\n")[2].removesuffix("</s>\n")


@pytest.fixture
def with_template(tokenizer):
    def make(text):
        own = copy.deepcopy(tokenizer)
        own.chat_template = text
        return own

    return make


@pytest.mark.parametrize(
    ("text", "kind", "calls"),
    [
        (TAGGED, JsonForm, TWO),
        (LISTED, JsonForm, TWO),
        (BARE, JsonForm, ONE),
        (NESTED, JsonForm, TWO),
        (NAMED, NamedForm, TWO),
        (SECTION, NamedForm, TWO),
        (TEXT_ONLY, NamedForm, TWO),
        (PAIRS, PairsForm, TWO),
        (KEYED, PairsForm, TWO),
        (PYTHONIC, PythonForm, [TWO[0], ("search", {"query": "7"})]),
    ],
)
def test_reads_what_the_template_writes(with_template, text, kind, calls):
    tokenizer = with_template(text)
    form = learned_form(tokenizer)
    assert type(form) is kind
    answer = written(tokenizer, calls, as_text=text == TEXT_ONLY)
    assert form.read(answer, TOOLS) == ("", calls)
    assert form.read("Good day.", TOOLS) == ("Good day.", [])
    if form.markers:
        assert form.read(f"Let me look.\n{answer}", TOOLS) == ("Let me look.", calls)
    name = calls[0][0]
    assert answer.lstrip().startswith(form.beginning(name))
    assert form.beginning(name).startswith(form.beginning(None))


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>\n{not json}\n</tool_call>",
        '<tool_call>\n{"name": "search", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "no word", "arguments": {}}\n</tool_call>',
        "<tool_call>\n[]\n</tool_call>",
        "<tool_call>",
        "<tool_call>\n" + "[" * 5000,
        *(
            f'<tool_call>{{"name": "search", "arguments": {{"query": {value}}}}}</tool_call>'
            for value in ("NaN", "-Infinity", "1e999", r'"\ud83d"')
        ),
    ],
)
def test_what_is_no_call_stays_text(with_template, answer):
    form = learned_form(with_template(TAGGED))
    assert form.read(answer, TOOLS)[1] == [] or answer.endswith("[]\n</tool_call>")
    assert form.read(answer, TOOLS)[0] in (answer, "")


def test_calls_as_models_write_them(with_template):
    """Without the end, one after another without a list, under the other usual name, and an answer in JSON that is no call."""
    tagged, listed = learned_form(with_template(TAGGED)), learned_form(with_template(LISTED))
    bare, pairs = learned_form(with_template(BARE)), learned_form(with_template(PAIRS))
    pythonic = learned_form(with_template(PYTHONIC))
    call = [("search", {"query": "a"})]
    assert tagged.read('<tool_call>{"name": "search", "parameters": {"query": "a"}}', TOOLS) == ("", call)
    assert listed.read('[TOOL_CALLS] {"name": "search", "arguments": {"query": "a"}}', TOOLS) == ("", call)
    assert pairs.read("<function=search>\n<parameter=query>\na\n</parameter>\n</function>", TOOLS) == (
        "",
        call,
    )
    assert pairs.read("<tool_call>\n<function=search>\n</function>\n</tool_call>", TOOLS) == (
        "",
        [("search", {})],
    )
    assert bare.read('{"name": "search", "arguments": {"query": "a"}}', TOOLS) == ("", call)
    assert bare.read('{"name": "Ada", "parameters": {}}', TOOLS)[1] == []
    assert pythonic.read('<|call_start|>search(query="a")', TOOLS) == ("", call)
    for value in ("{1, 2}", "b'a'", "...", "{(1, 2): 3}", "1e999", r"'\ud83d'"):
        assert pythonic.read(f"<|call_start|>[search(query={value})]<|call_end|>", TOOLS)[1] == []
    assert pythonic.read(f"<|call_start|>[{'a.' * 3000}b(query=1)]<|call_end|>", TOOLS)[1] == []
    assert pythonic.read("<|call_start|>[__import__('os').system('x')]<|call_end|>", TOOLS)[1] == []
