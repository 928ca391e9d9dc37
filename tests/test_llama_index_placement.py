"""Test slots in LlamaIndex's templates: where they go, and that nobody else can write one."""

import doctest
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.prompts import (
    BasePromptTemplate,
    ChatPromptTemplate,
    PromptTemplate,
    RichPromptTemplate,
    SelectorPromptTemplate,
)
from llama_index.core.prompts.chat_prompts import (
    CHAT_CONTENT_QA_PROMPT,
    CHAT_CONTENT_TREE_SUMMARIZE_PROMPT,
    CHAT_TEXT_QA_PROMPT,
)
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.prompts.default_prompts import DEFAULT_REFINE_PROMPT, DEFAULT_TEXT_QA_PROMPT
from llama_index_parts import SLOT, shown

from llama_index.llms.spring_rag import placement, render_text, with_virtual_tokens
from spring_rag import RagPrompt, RagTemplate
from spring_rag.bridge.marks import MARK, split
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER

VALUES = {"context_str": "C1\nC2", "query_str": "Q?"}


def rendered(template, **values) -> str:
    return shown(split(template.format(**(values or VALUES))))


def rendered_messages(template, **values) -> list[tuple[str, str]]:
    messages = template.format_messages(**(values or VALUES))
    return [(message.role.value, shown(split(message.content or ""))) for message in messages]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{context_str}\n\nQuestion: {query_str}\nAnswer:", f"C1\nC2\n\n{SLOT}Question: Q?\nAnswer:"),
        ("{context_str} / {query_str}", f"C1\nC2{SLOT} / Q?"),
        ("{context_str}\n{query_str}", f"C1\nC2\n{SLOT}Q?"),
        ("{query_str}\n{context_str}\nAgain: {query_str}", f"Q?\nC1\nC2\n{SLOT}Again: Q?"),
        ("{context_str}\n{query_str}\n{query_str}", f"C1\nC2\n{SLOT}Q?\nQ?"),
        (f"{{context_str}} {SLOT_MARKER}\nso: {{query_str}}", f"C1\nC2 {SLOT}\nso: Q?"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "rich"])
def test_slot_stands_before_the_questions_line(template, expected, kind):
    if kind == "rich":
        prompt = RichPromptTemplate(template.replace("{", "{{ ").replace("}", " }}"))
    else:
        prompt = PromptTemplate(template)
    slotted = with_virtual_tokens(prompt)
    assert type(slotted) is type(prompt)
    assert rendered(slotted) == expected
    assert MARK not in prompt.get_template(), "the original was changed"


def test_slot_ends_a_template_without_the_question():
    text = PromptTemplate("Use this:\n{context_str}\n----\nGive details.\n")
    assert rendered(with_virtual_tokens(text)) == f"Use this:\nC1\nC2\n----\nGive details.\n{SLOT}"
    rich = RichPromptTemplate("Use this:\n{{ context_str }}\n----\nGive details.\n")
    assert rendered(with_virtual_tokens(rich)) == f"Use this:\nC1\nC2\n----\nGive details.{SLOT}"
    rich = RichPromptTemplate("{% chat role='system' %}\n{{ context_str }} (all)\n{% endchat %}\n")
    assert rendered_messages(with_virtual_tokens(rich)) == [("system", f"C1\nC2 (all)\n{SLOT}")]


QUESTION_FIRST = [
    PromptTemplate("Question: {query_str}\nContext: {context_str}\nAnswer:"),
    RichPromptTemplate("Question: {{ query_str }}\nContext: {{ context_str }}\nAnswer:"),
    ChatPromptTemplate.from_messages([("user", "Question: {query_str}\nContext: {context_str}\nAnswer:")]),
]


@pytest.mark.parametrize("prompt", QUESTION_FIRST)
def test_question_before_the_context_warns(prompt):
    with pytest.warns(UserWarning, match="question stands before the context") as caught:
        slotted = with_virtual_tokens(prompt)
    assert caught[0].filename == __file__
    assert rendered_messages(slotted) == [("user", f"Question: Q?\nContext: C1\nC2{SLOT}\nAnswer:")]


@pytest.mark.parametrize("prompt", QUESTION_FIRST)
def test_question_before_the_context_can_be_repeated(prompt, recwarn):
    slotted = with_virtual_tokens(prompt, repeat_question=True)
    assert not recwarn.list
    expected = f"Question: Q?\nContext: C1\nC2\n{SLOT}Question: Q?\nAnswer:"
    assert rendered_messages(slotted) == [("user", expected)]


def test_question_after_the_context_is_not_repeated():
    slotted = with_virtual_tokens(DEFAULT_TEXT_QA_PROMPT, repeat_question=True)
    assert rendered(slotted) == rendered(with_virtual_tokens(DEFAULT_TEXT_QA_PROMPT))


def test_question_after_the_context_does_not_warn(recwarn):
    with_virtual_tokens(DEFAULT_TEXT_QA_PROMPT_SEL)
    assert not recwarn.list


def test_default_template_with_partial_values():
    slotted = with_virtual_tokens(DEFAULT_TEXT_QA_PROMPT).partial_format(query_str="Q?")
    assert rendered(slotted, context_str="C").endswith(f"answer the query.\n{SLOT}Query: Q?\nAnswer: ")
    assert rendered(slotted, context_str="C").replace(SLOT, "") == DEFAULT_TEXT_QA_PROMPT.format(
        context_str="C", query_str="Q?"
    )


def test_context_and_question_in_two_messages():
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Facts:\n{context_str}\n"), ("user", "Be brief.\nQuestion: {query_str}")]
    )
    assert rendered_messages(with_virtual_tokens(prompt)) == [
        ("system", "Facts:\nC1\nC2\n"),
        ("user", f"Be brief.\n{SLOT}Question: Q?"),
    ]
    assert rendered_messages(prompt)[1] == ("user", "Be brief.\nQuestion: Q?")


def test_messages_keep_what_is_not_text():
    image = ImageBlock(url="https://example.org/a.png")
    prompt = ChatPromptTemplate(
        [
            ChatMessage(
                role="user", blocks=[TextBlock(text="{context_str}"), image, TextBlock(text="{query_str}")]
            )
        ]
    )
    blocks = with_virtual_tokens(prompt).format_messages(**VALUES)[0].blocks
    assert [block.block_type for block in blocks] == ["text", "image", "text"]
    assert blocks[2].text == MARK + "Q?"


@pytest.mark.parametrize("prompt", [CHAT_CONTENT_QA_PROMPT, CHAT_CONTENT_TREE_SUMMARIZE_PROMPT])
def test_rich_template_with_loops(prompt):
    values = {"context_messages": [ChatMessage("one"), ChatMessage("two")], "query_str": "Q?"}
    (system, user), plain = (
        rendered_messages(with_virtual_tokens(prompt), **values),
        rendered_messages(prompt, **values),
    )
    assert system == plain[0]
    assert f"{SLOT}Query: Q?\n" in user[1]
    assert user[1].replace(SLOT, "") == plain[1][1]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% chat role='user' %}{{ context_str }}{% endchat %}{% chat role='user' %}Q: {{ query_str }}{% endchat %}",
            1,
        ),
        (
            "{% chat role='user' %}\n{% if context_str %}\n{{ context_str }}\n{% endif %}\nQ: {{ query_str }}\n{% endchat %}",
            0,
        ),
        (
            "{% chat role='user' %}\n{{ context_str }}\n  {% if query_str %}\n  Q: {{ query_str }}\n  {% endif %}\n{% endchat %}",
            0,
        ),
        ("{% chat role='user' %}\n{% for x in context_str %}\n{{ x }}\n{% endfor %}\n{% endchat %}", 0),
    ],
)
def test_rich_template_renders_as_before_but_for_the_slot(source, expected):
    prompt = RichPromptTemplate(source)
    slotted = rendered_messages(with_virtual_tokens(prompt))
    assert [index for index, (_, text) in enumerate(slotted) if SLOT in text] == [expected]
    # Contents are trimmed, which a slot at the end keeps from what is before it.
    assert [(role, text.replace(SLOT, "").strip()) for role, text in slotted] == rendered_messages(prompt)
    text = slotted[expected][1]
    assert "C" not in text[text.index(SLOT) :]
    assert "Q" not in text[: text.index(SLOT)]


def test_selector_slots_every_template_that_has_a_context():
    without = PromptTemplate("{query_str}")
    prompt = SelectorPromptTemplate(
        DEFAULT_TEXT_QA_PROMPT,
        [(lambda llm: llm == "chat", CHAT_TEXT_QA_PROMPT), (lambda llm: True, without)],
    )
    slotted = with_virtual_tokens(prompt)
    assert type(slotted) is SelectorPromptTemplate
    assert rendered(slotted.select()).count(SLOT) == 1
    assert SLOT in rendered_messages(slotted.select("chat"))[1][1]
    assert slotted.select("other") is without
    assert MARK not in DEFAULT_TEXT_QA_PROMPT.template
    partial = slotted.partial_format(query_str="Q?")
    assert SLOT in rendered(partial.select(), context_str="C")


def test_variables_under_other_names():
    mapped = PromptTemplate(
        "{facts}\nQ: {ask}", template_var_mappings={"context_str": "facts", "query_str": "ask"}
    )
    assert rendered(with_virtual_tokens(mapped)) == f"C1\nC2\n{SLOT}Q: Q?"
    own = with_virtual_tokens(PromptTemplate("{facts}\nQ: {ask}"), context="facts", question="ask")
    assert rendered(own, facts="F", ask="A") == f"F\n{SLOT}Q: A"


def test_functions_of_the_template_are_kept():
    prompt = PromptTemplate(
        "{context_str}\n{query_str}", function_mappings={"query_str": lambda **_: "computed"}
    )
    assert rendered(with_virtual_tokens(prompt), context_str="C") == f"C\n{SLOT}computed"


def test_a_second_call_changes_nothing():
    once = with_virtual_tokens(DEFAULT_TEXT_QA_PROMPT_SEL)
    assert rendered(with_virtual_tokens(once)).count(SLOT) == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (PromptTemplate("{query_str}"), "has no {context_str} or {context_messages}"),
        (RichPromptTemplate("{{ query_str }}"), "has no {context_str}"),
        (SelectorPromptTemplate(PromptTemplate("{query_str}")), "has no {context_str}"),
        (DEFAULT_REFINE_PROMPT, "has no {context_str}"),
        (PromptTemplate("{context_str}" + SLOT_MARKER * 2), "has 2"),
    ],
)
def test_refusals_say_why(prompt, message):
    with pytest.raises(PromptError) as error:
        with_virtual_tokens(prompt)
    assert message in str(error.value)


def test_unknown_kind_is_refused():
    class OwnTemplate(BasePromptTemplate):
        def partial_format(self, **kwargs):
            raise NotImplementedError

        format = format_messages = get_template = partial_format

    prompt = OwnTemplate(metadata={}, template_vars=["context_str"], kwargs={}, output_parser=None)
    with pytest.raises(PromptError, match="OwnTemplate"):
        with_virtual_tokens(prompt)


@given(
    context=st.text(),
    question=st.text() | st.just(SLOT_MARKER) | st.just("⧹⧹(⟦spring-rag:slot:0123456789abcdef⟧"),
)
@settings(max_examples=50, deadline=None)
def test_values_stay_verbatim_and_make_no_slot(context, question):
    template = with_virtual_tokens(PromptTemplate("{context_str}\nQ: {query_str}"))
    text = template.format(context_str=context, query_str=question)
    assert [getattr(part, "text", None) for part in split(text)] == [
        f"{context}\n",
        None,
        f"Q: {question}",
    ]


def test_template_of_another_process_is_given_again():
    pickled = pickle.dumps(with_virtual_tokens(PromptTemplate("{context_str} {query_str}")))
    secret = MARK[len(SLOT_MARKER) : -1].encode()
    foreign = pickle.loads(pickled.replace(secret, b"0123456789abcdef"))
    assert SLOT not in rendered(foreign)
    assert rendered(with_virtual_tokens(foreign)) == f"C1\nC2{SLOT} Q?"


def test_prompt_made_in_code():
    text = render_text(RagPrompt("Q?", ["P1", "P2"]))
    assert shown(split(text)) == f"[1] P1\n[2] P2\n\n{SLOT}Question: Q?\nAnswer:"
    with pytest.raises(PromptError, match="chat"):
        render_text(RagPrompt("Q?", ["P1"], template=RagTemplate(chat=True)))


def test_system_role_is_unchanged():
    assert with_virtual_tokens(CHAT_TEXT_QA_PROMPT).message_templates[0].role is MessageRole.SYSTEM


def test_docstring_examples():
    assert doctest.testmod(placement).attempted
    assert doctest.testmod(placement).failed == 0
