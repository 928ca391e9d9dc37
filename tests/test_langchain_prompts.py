import doctest
import importlib
import pickle
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    HumanMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
    load_prompt,
)
from langchain_parts import make_spring_model, spring_model  # noqa: F401 - fixtures

from langchain_spring_rag import (
    VIRTUAL_TOKENS,
    format_passages,
    number_passages,
    rag_prompt,
    spliced,
    with_virtual_tokens,
)
from langchain_spring_rag.messages import canonical_messages, to_prompt
from langchain_spring_rag.prompts import SpringFewShotPromptTemplate, SpringPromptTemplate
from spring_rag.bridge.marks import is_marked, split, without_marks
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, RagPrompt, RagTemplate, Slot, Text

F_STRING = "Answer from the context.\nContext:\n{context}\n\nQuestion: {question}\nAnswer:"
MUSTACHE = "Answer from the context.\nContext:\n{{{context}}}\n\nQuestion: {{{question}}}\nAnswer:"
JINJA2 = "Answer from the context.\nContext:\n{{ context }}\n\nQuestion: {{ question }}\nAnswer:"
FORMATS = [("f-string", F_STRING), ("mustache", MUSTACHE), ("jinja2", JINJA2)]
VALUES = {"context": "Hale and Sons built it.", "question": "Who built it?"}
BEFORE = "Answer from the context.\nContext:\nHale and Sons built it.\n\n"
AFTER = "Question: Who built it?\nAnswer:"


def string_sides(prompt, **values):
    """Text before and after the slot of a string prompt."""
    return sides(split(prompt.invoke(values or VALUES).to_string()))


def chat_sides(prompt, **values):
    """Role and texts before and after the slot of the message that has it."""
    chat = to_prompt(prompt.invoke(values or VALUES).to_messages())
    (message,) = [each for each in chat.messages if any(isinstance(part, Slot) for part in each.parts)]
    return message.role, *sides(message.parts)


def sides(parts):
    index = [isinstance(part, Slot) for part in parts].index(True)
    return "".join(part.text for part in parts[:index]), "".join(part.text for part in parts[index + 1 :])


class TestStringPrompts:
    @pytest.mark.parametrize(("template_format", "template"), FORMATS)
    def test_the_slot_stands_before_the_line_of_the_question(self, template_format, template):
        plain = PromptTemplate.from_template(template, template_format=template_format)
        prompt = with_virtual_tokens(plain)
        assert isinstance(prompt, PromptTemplate)
        assert prompt.input_variables == plain.input_variables
        assert string_sides(prompt) == (BEFORE, AFTER)
        assert SLOT_MARKER not in plain.template

    @pytest.mark.parametrize(
        ("template", "before"),
        [
            ("C: {context} Q: {question}", "C: Hale and Sons built it."),
            ("{context}{question}", "Hale and Sons built it."),
            ("{question}? Read {context}. Now: {question}", None),
            ("{{x}} {context!s:>30}\n{{y}} {question}", None),
        ],
    )
    def test_on_one_line_it_stands_after_the_context(self, template, before):
        prompt = with_virtual_tokens(PromptTemplate.from_template(template))
        found = string_sides(prompt)
        assert "".join(found) == PromptTemplate.from_template(template).format(**VALUES)
        assert before is None or found[0] == before

    def test_a_question_before_the_context_warns(self):
        template = PromptTemplate.from_template("Question: {question}\nContext: {context}\nAnswer:")
        with pytest.warns(UserWarning, match="question stands before the context") as caught:
            prompt = with_virtual_tokens(template)
        assert caught[0].filename == __file__
        assert string_sides(prompt) == (
            "Question: Who built it?\nContext: Hale and Sons built it.",
            "\nAnswer:",
        )

    @pytest.mark.parametrize(
        ("template_format", "template"),
        [
            ("f-string", "Question: {question} \nContext: {context} \nAnswer:"),
            ("mustache", "Question: {{question}} \nContext: {{context}} \nAnswer:"),
            ("jinja2", "Question: {{ question }} \nContext: {% if 1 %}{{ context }}{% endif %} \nAnswer:"),
        ],
    )
    def test_a_question_before_the_context_can_be_repeated(self, template_format, template):
        template = PromptTemplate.from_template(template, template_format=template_format)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prompt = with_virtual_tokens(template, repeat_question=True)
        assert string_sides(prompt) == (
            "Question: Who built it? \nContext: Hale and Sons built it.\n",
            "Question: Who built it? \nAnswer:",
        )

    def test_a_question_after_the_context_is_not_repeated(self):
        template = PromptTemplate.from_template("{context}\nQuestion: {question}")
        assert with_virtual_tokens(template, repeat_question=True) == with_virtual_tokens(template)

    def test_a_question_on_both_sides_does_not_warn(self):
        template = PromptTemplate.from_template("Think of {question}\n{context}\nQuestion: {question}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prompt = with_virtual_tokens(template)
        assert string_sides(prompt)[1] == "Question: Who built it?"

    @pytest.mark.parametrize(
        "template",
        [
            "{% for text in context %}{{ loop.index }}. {{ text }}\n{% endfor %}\nQuestion: {{ question }}",
            "{% if context %}Read: {{ context | join(' ') }}\n{% endif %}Q: {{ question }}\n",
            "{{ context }}\n\n{{- question }}",
            "{# {{ question }} #}{{ context -}}\n\nQ: {{ question | upper }}",
            "{{ context }}\n{% if question %}Q: {{ question }}{% endif %}",
        ],
    )
    def test_jinja2_blocks_stay_whole(self, template):
        plain = PromptTemplate.from_template(template, template_format="jinja2")
        values = {"context": ["one", "two"], "question": "why?"}
        before, after = string_sides(with_virtual_tokens(plain), **values)
        assert before + after == plain.format(**values)
        assert "two" in before
        assert "why" in after.lower()

    @pytest.mark.parametrize(
        "template",
        [
            "{{#context}}\n- {{.}}\n{{/context}}\nQuestion: {{question}}",
            "{{#context}}{{.}} {{/context}}Question: {{question}}",
            "{{#context}}{{.}} {{/context}}\n\n{{#question}}\nQ: {{.}}\n{{/question}}",
        ],
    )
    def test_mustache_sections_stay_whole(self, template):
        plain = PromptTemplate.from_template(template, template_format="mustache")
        values = {"context": ["one", "two"], "question": "why"}
        before, after = string_sides(with_virtual_tokens(plain), **values)
        assert before + after == plain.format(**values)
        assert "two" in before
        assert "why" in after

    def test_one_block_with_both_is_refused(self):
        template = "{% if context %}{{ context }}\n{{ question }}{% endif %}"
        with pytest.raises(PromptError, match="SLOT_MARKER"):
            with_virtual_tokens(PromptTemplate.from_template(template, template_format="jinja2"))

    def test_a_slot_by_hand_stays_where_it_is(self):
        template = "{% if context %}{{ context }}\n" + SLOT_MARKER + "{% endif %}{{ question }}"
        prompt = with_virtual_tokens(PromptTemplate.from_template(template, template_format="jinja2"))
        assert string_sides(prompt) == ("Hale and Sons built it.\n", "Who built it?")
        assert not is_marked(prompt.format(context="", question="Hm?"))

    def test_two_markers_are_refused(self):
        one = PromptTemplate.from_template(SLOT_MARKER + "{context}{question}" + SLOT_MARKER)
        chat = ChatPromptTemplate.from_messages([("system", SLOT_MARKER), ("human", SLOT_MARKER)])
        for prompt in (one, chat):
            with pytest.raises(PromptError, match="one slot"):
                with_virtual_tokens(prompt)

    @pytest.mark.parametrize(
        "template", ["{{ context }}\r\n\r\nQ: {{ question }}\r\n!", "{{context}}\rQ: {{question}}"]
    )
    def test_line_breaks_of_other_systems(self, template):
        plain = PromptTemplate.from_template(template, template_format="jinja2")
        before, after = string_sides(with_virtual_tokens(plain))
        assert before + after == plain.format(**VALUES)
        assert before.strip() == VALUES["context"]

    def test_twice_is_once(self):
        prompt = with_virtual_tokens(with_virtual_tokens(PromptTemplate.from_template(F_STRING)))
        assert string_sides(prompt) == (BEFORE, AFTER)

    def test_unknown_variables_are_named(self):
        prompt = PromptTemplate.from_template("{context}\n{input}")
        with pytest.raises(PromptError, match=r"{question}.*context, input.*question=\.\.\."):
            with_virtual_tokens(prompt)
        assert string_sides(with_virtual_tokens(prompt, question="input"), context="c", input="i") == (
            "c\n",
            "i",
        )

    @pytest.mark.parametrize(("template_format", "template"), FORMATS)
    @given(context=st.text(), question=st.text(), cut=st.integers(0, len(SLOT_MARKER)))
    def test_values_cannot_forge_a_slot(self, template_format, template, context, question, cut):
        plain = PromptTemplate.from_template(template, template_format=template_format)
        values = {
            "context": context + SLOT_MARKER[:cut],
            "question": SLOT_MARKER[cut:] + question + SLOT_MARKER,
        }
        before, after = string_sides(with_virtual_tokens(plain), **values)
        assert before + after == plain.format(**values)
        assert after.startswith("Question: " + values["question"])

    def test_text_from_elsewhere_is_no_slot(self):
        with pytest.warns(UserWarning, match="ordinary text"):
            parts = split("see " + SLOT_MARKER)
        assert parts == (Text("see " + SLOT_MARKER),)

    def test_partial_variables(self):
        prompt = with_virtual_tokens(PromptTemplate.from_template(F_STRING))
        assert string_sides(prompt.partial(question=lambda: "Who built it?"), context=VALUES["context"]) == (
            BEFORE,
            AFTER,
        )
        partial = PromptTemplate.from_template(F_STRING, partial_variables={"context": VALUES["context"]})
        assert string_sides(with_virtual_tokens(partial), question=VALUES["question"]) == (BEFORE, AFTER)

    def test_plus(self):
        prompt = with_virtual_tokens(PromptTemplate.from_template(F_STRING))
        head = PromptTemplate.from_template("Hello {name}.\n")
        assert string_sides("Hi.\n" + prompt) == ("Hi.\n" + BEFORE, AFTER)
        assert string_sides(prompt + " Well:") == (BEFORE, AFTER + " Well:")
        assert string_sides(head + prompt, name="Ann", **VALUES) == ("Hello Ann.\n" + BEFORE, AFTER)
        with pytest.raises(PromptError, match="one slot"):
            prompt + prompt

    def test_pickling(self):
        prompt = with_virtual_tokens(PromptTemplate.from_template(F_STRING))
        assert string_sides(pickle.loads(pickle.dumps(prompt))) == (BEFORE, AFTER)

    @pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
    @pytest.mark.parametrize("suffix", ["json", "yaml"])
    def test_saving(self, suffix, tmp_path):
        prompt = with_virtual_tokens(PromptTemplate.from_template(F_STRING))
        prompt.save(tmp_path / f"prompt.{suffix}")
        assert string_sides(load_prompt(tmp_path / f"prompt.{suffix}")) == (BEFORE, AFTER)

    def test_serialising(self):
        prompt = with_virtual_tokens(PromptTemplate.from_template(F_STRING))
        loaded = loads(
            dumps(prompt), allowed_objects=[SpringPromptTemplate], valid_namespaces=["langchain_spring_rag"]
        )
        assert loaded == prompt

    async def test_async(self):
        value = await with_virtual_tokens(PromptTemplate.from_template(F_STRING)).ainvoke(VALUES)
        assert sides(split(value.to_string())) == (BEFORE, AFTER)


class TestFewShotPrompts:
    EXAMPLE = PromptTemplate.from_template("Q: {q} A: {a}")
    EXAMPLES = ({"q": "Who?", "a": "Hale " + SLOT_MARKER},)

    def _few_shot(self, **changes):
        fields = {"prefix": "Examples:", "suffix": F_STRING, **changes}
        return FewShotPromptTemplate(examples=list(self.EXAMPLES), example_prompt=self.EXAMPLE, **fields)

    @pytest.mark.parametrize(
        "sides_of_the_prompt", [{}, {"prefix": "Context: {context}", "suffix": "Question: {question}"}]
    )
    async def test_few_shot(self, sides_of_the_prompt):
        plain = self._few_shot(**sides_of_the_prompt)
        prompt = with_virtual_tokens(plain)
        assert isinstance(prompt, FewShotPromptTemplate)
        before, after = string_sides(prompt)
        assert before + after == plain.format(**VALUES)
        assert after.startswith("Question: Who built it?")
        assert await prompt.aformat(**VALUES) == prompt.format(**VALUES)

    def test_with_templates(self):
        plain = FewShotPromptWithTemplates(
            examples=list(self.EXAMPLES),
            example_prompt=self.EXAMPLE,
            prefix=PromptTemplate.from_template("Context: {context}"),
            suffix=PromptTemplate.from_template("Question: {question}"),
            input_variables=["context", "question"],
        )
        before, after = string_sides(with_virtual_tokens(plain))
        assert before + after == plain.format(**VALUES)
        assert after == "Question: Who built it?"

    @pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
    def test_pickling_and_saving(self, tmp_path):
        prompt = with_virtual_tokens(self._few_shot())
        assert string_sides(pickle.loads(pickle.dumps(prompt))) == string_sides(prompt)
        prompt.save(tmp_path / "prompt.json")
        loaded = load_prompt(tmp_path / "prompt.json")
        assert isinstance(loaded, SpringFewShotPromptTemplate)
        assert string_sides(loaded) == string_sides(prompt)


class TestChatPrompts:
    TWO = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer from this:\n{context}"),
            MessagesPlaceholder("history"),
            ("human", "Hi!\nQ: {question}"),
        ]
    )

    @pytest.mark.parametrize(("template_format", "template"), FORMATS)
    def test_one_message(self, template_format, template):
        plain = ChatPromptTemplate.from_messages([("human", template)], template_format=template_format)
        prompt = with_virtual_tokens(plain)
        assert type(prompt) is ChatPromptTemplate
        assert chat_sides(prompt) == ("user", BEFORE, AFTER)
        assert without_marks(prompt.invoke(VALUES).messages[0].text) == plain.invoke(VALUES).messages[0].text

    def test_two_messages(self):
        history = [HumanMessage("one"), AIMessage("two")]
        prompt = with_virtual_tokens(self.TWO)
        assert chat_sides(prompt, history=history, **VALUES) == ("user", "Hi!\n", "Q: Who built it?")
        assert [each.type for each in prompt.invoke({"history": history, **VALUES}).messages] == [
            "system",
            "human",
            "ai",
            "human",
        ]

    def test_the_question_first_warns(self):
        plain = ChatPromptTemplate.from_messages(
            [("system", "Answer {question}"), ("human", "Context: {context}")]
        )
        with pytest.warns(UserWarning, match="question stands before"):
            prompt = with_virtual_tokens(plain)
        assert chat_sides(prompt) == ("user", "Context: Hale and Sons built it.", "")

    def test_the_question_first_can_be_repeated(self):
        plain = ChatPromptTemplate.from_messages([("system", "Answer {question}"), ("human", "{context}")])
        prompt = with_virtual_tokens(plain, repeat_question=True)
        assert sorted(prompt.input_variables) == ["context", "question"]
        assert chat_sides(prompt) == ("user", "Hale and Sons built it.\n", "Answer Who built it?")

    def test_messages_before_the_context_cannot_be_repeated(self):
        plain = ChatPromptTemplate.from_messages([("placeholder", "{messages}"), ("human", "{context}")])
        with pytest.raises(
            PromptError, match="'messages' can't be repeated after the context: it is messages"
        ):
            with_virtual_tokens(plain, question="messages", repeat_question=True)

    def test_a_placeholder_as_question(self):
        plain = ChatPromptTemplate.from_messages([("system", "{context}"), ("placeholder", "{messages}")])
        prompt = with_virtual_tokens(plain, question="messages")
        messages = [HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
        assert chat_sides(prompt, context="c", messages=messages) == ("user", "", "three")
        assert with_virtual_tokens(prompt, question="messages") == prompt

    def test_history_brings_no_slots(self):
        history = [HumanMessage(spliced("old", "q")), AIMessage("a")]
        assert chat_sides(with_virtual_tokens(self.TWO), history=history, **VALUES)[0] == "user"

    def test_chat_text_cannot_forge_a_slot(self):
        values = {"context": SLOT_MARKER, "question": SLOT_MARKER, "history": [HumanMessage(SLOT_MARKER)]}
        role, before, after = chat_sides(with_virtual_tokens(self.TWO), **values)
        assert (role, before, after) == ("user", "Hi!\n", "Q: " + SLOT_MARKER)

    def test_messages_of_parts(self):
        parts = [{"type": "text", "text": "{context}"}, {"type": "text", "text": "Q: {question}"}]
        prompt = with_virtual_tokens(ChatPromptTemplate.from_messages([("human", parts)]))
        assert chat_sides(prompt) == ("user", "Hale and Sons built it.", "Q: Who built it?")
        values = {"context": SLOT_MARKER, "question": SLOT_MARKER}
        assert chat_sides(prompt, **values) == ("user", SLOT_MARKER, "Q: " + SLOT_MARKER)

    def test_nested_chat_prompts(self):
        inner = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")])
        prompt = with_virtual_tokens(ChatPromptTemplate.from_messages([("system", "Be kind."), inner]))
        assert chat_sides(prompt) == ("user", "", "Who built it?")

    def test_few_shot_examples(self):
        examples = FewShotChatMessagePromptTemplate(
            examples=[{"q": "2+2?", "a": "4"}],
            example_prompt=ChatPromptTemplate.from_messages([("human", "{q}"), ("ai", "{a}")]),
        )
        prompt = with_virtual_tokens(
            ChatPromptTemplate.from_messages([("system", "{context}"), examples, ("human", "{question}")])
        )
        assert chat_sides(prompt) == ("user", "", "Who built it?")
        with pytest.raises(PromptError, match="whole ChatPromptTemplate"):
            with_virtual_tokens(examples)

    def test_partial_plus_and_pipe(self):
        prompt = with_virtual_tokens(self.TWO).partial(history=[])
        assert chat_sides(prompt, **VALUES)[1:] == ("Hi!\n", "Q: Who built it?")
        longer = SystemMessage("Be kind.") + prompt + ("human", "Please.")[1]
        assert len(longer.messages) == 5
        assert chat_sides(longer, **VALUES)[1:] == ("Hi!\n", "Q: Who built it?")
        assert chat_sides(prompt | (lambda value: value), **VALUES)[0] == "user"

    def test_pickling_and_serialising(self):
        prompt = with_virtual_tokens(self.TWO)
        classes = [
            ChatPromptTemplate,
            SpringPromptTemplate,
            PromptTemplate,
            *map(type, self.TWO.messages),
        ]
        loaded = loads(dumps(prompt), allowed_objects=classes, valid_namespaces=["langchain_spring_rag"])
        for copy in (pickle.loads(pickle.dumps(prompt)), loaded):
            assert chat_sides(copy, history=[], **VALUES) == ("user", "Hi!\n", "Q: Who built it?")

    async def test_async(self):
        value = await with_virtual_tokens(self.TWO).ainvoke({"history": [], **VALUES})
        assert value == with_virtual_tokens(self.TWO).invoke({"history": [], **VALUES})

    def test_a_string_prompt_becomes_one_message(self):
        messages = with_virtual_tokens(PromptTemplate.from_template(F_STRING)).invoke(VALUES).to_messages()
        assert [each.content for each in canonical_messages(messages)] == [spliced(BEFORE, AFTER)]

    def test_message_templates_alone_are_refused(self):
        with pytest.raises(PromptError, match="HumanMessagePromptTemplate can't hold"):
            with_virtual_tokens(HumanMessagePromptTemplate.from_template(F_STRING))


@pytest.mark.parametrize("module", ["messages", "placement"])
def test_examples_in_docstrings(module):
    results = doctest.testmod(importlib.import_module(f"langchain_spring_rag.{module}"))
    assert results.attempted
    assert not results.failed


def test_without_langchain_the_import_names_the_extra():
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from spring_rag.errors import MissingExtraError\n"
        "try:\n    import langchain_spring_rag\nexcept MissingExtraError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'spring-rag[langchain]'" in result.stdout


class TestReadyMade:
    DOCUMENTS = (Document("One {x}.", metadata={"source": "a"}), Document("Two."))

    @pytest.mark.parametrize("count", [0, 1, 2])
    @pytest.mark.parametrize(
        "template",
        [
            RagTemplate(),
            RagTemplate(instruction="Use {braces}.\n", context_end=""),
            RagTemplate(chat=True, system="Be {brief}."),
        ],
    )
    def test_it_is_the_cores_prompt(self, template, count):
        documents = self.DOCUMENTS[:count]
        expected = RagPrompt("Why?", [each.page_content for each in documents], template).to_prompt()
        value = rag_prompt(template).invoke(
            {"context": format_passages(documents, template), "question": "Why?"}
        )
        if template.chat:
            found = to_prompt(value.to_messages()).messages[-1].parts
            assert value.to_messages()[0].content == "Be {brief}."
            assert sides(found) == sides(expected.messages[-1].parts)
        else:
            assert sides(split(value.to_string())) == sides(expected.parts)

    def test_numbered_one_by_one(self):
        numbered = number_passages(self.DOCUMENTS)
        assert "".join(each.metadata["passage"] for each in numbered) == format_passages(self.DOCUMENTS)
        assert [each.page_content for each in numbered] == ["One {x}.", "Two."]
        assert numbered[0].metadata["source"] == "a"
        assert "passage" not in self.DOCUMENTS[0].metadata

    def test_spliced(self):
        assert spliced("c") == [{"type": "text", "text": "c"}, VIRTUAL_TOKENS]
        assert spliced("c", "q") == [
            {"type": "text", "text": "c"},
            VIRTUAL_TOKENS,
            {"type": "text", "text": "q"},
        ]

    def test_a_rendered_text_is_a_str_with_a_slot(self):
        text = rag_prompt().format(**VALUES)
        assert type(text) is str
        assert is_marked(text)


class TestOnVLLM:
    PROMPT = ChatPromptTemplate.from_messages([("human", "{context}\n\n{question}")])

    def test_it_can_be_told_what_a_model_can(self, spring_model):  # noqa: F811
        settings = {"num_tokens": 2, "tokens": "other", "thinking": True, "chat_template_kwargs": {"a": 1}}
        made = with_virtual_tokens(self.PROMPT, on_vllm=spring_model, **settings)
        assert {name: getattr(made, name) for name in settings} == settings
        assert made.input_variables == self.PROMPT.input_variables

    def test_what_it_cannot_be_told(self, spring_model):  # noqa: F811
        with pytest.raises(
            PromptError, match="num_tokens go with on_vllm; without it they are settings of the model"
        ):
            with_virtual_tokens(self.PROMPT, num_tokens=2)
        with pytest.raises(
            PromptError, match="takes no temperature; with on_vllm it takes num_tokens, tokens"
        ):
            with_virtual_tokens(self.PROMPT, on_vllm=spring_model, temperature=1)
