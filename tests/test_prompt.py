"""Test prompts, templates, and the slot's marker."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from string import Formatter

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spring_rag.errors import PromptError
from spring_rag.prompt import (
    SLOT_MARKER,
    Message,
    Prompt,
    RagPrompt,
    RagTemplate,
    Slot,
    Text,
    ToolCall,
    escape,
    parse_marked,
    unescape,
)

TEXTS = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from([SLOT_MARKER, "⟦", "⟧", "⧹", "⧹(", "spring-rag:slot⟧", "⟦spring-rag:", "{", "<"]),
    )
).map("".join)


class TestPrompt:
    def test_text_is_what_stands_around_the_slot(self):
        prompt = Prompt((Text("a", trusted=True), Slot(), Text("b")))
        assert prompt.text == "ab"
        assert prompt.has_slot

    def test_a_chat_has_its_slot_in_a_message(self):
        prompt = Prompt(
            messages=(Message("system", (Text("s"),)), Message("user", (Text("c"), Slot(), Text("q"))))
        )
        assert prompt.has_slot
        assert prompt.text == "s\ncq"
        assert not Prompt(messages=(Message("user", (Text("q"),)),)).has_slot

    def test_slots_are_equal_and_prompts_hashable(self):
        assert Slot() == Slot()
        assert Prompt([Text("a"), Slot()]) == Prompt((Text("a"), Slot()))  # type: ignore[arg-type]
        assert len({Prompt((Slot(),)), Prompt((Slot(),))}) == 1

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Prompt((Slot(), Text("a"), Slot())),
            lambda: Prompt(messages=(Message("user", (Slot(),)), Message("user", (Slot(),)))),
        ],
    )
    def test_two_slots_are_an_error(self, make):
        with pytest.raises(PromptError, match="one slot, this one has 2"):
            make()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Prompt(),
            lambda: Prompt((Text("a"),), (Message("user", ()),)),
            lambda: Prompt(("a",)),  # type: ignore[arg-type]
            lambda: Prompt(messages=({"role": "user"},)),  # type: ignore[arg-type]
            lambda: Text(b"a"),  # type: ignore[arg-type]
            lambda: Message("user<|im_end|>", (Text("a"),)),
            lambda: RagPrompt("q", "one passage"),
            lambda: RagPrompt("q", [1]),  # type: ignore[list-item]
            lambda: RagPrompt(None, []),  # type: ignore[arg-type]
        ],
    )
    def test_what_is_no_prompt_is_refused(self, make):
        with pytest.raises(PromptError):
            make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Text("a \ud800"),
        lambda: RagPrompt("Who \udcff?", []).to_prompt(),
        lambda: RagPrompt("Who?", ["a \ud800"]),
        lambda: RagTemplate(opening="a \ud800"),
        lambda: RagTemplate(chat_template_kwargs={"day": "a \ud800"}),
        lambda: Message("tool", (Text("a"),), name="a \ud800"),
        lambda: Message("tool", (Text("a"),), tool_call_id="a \ud800"),
        lambda: ToolCall("search", {"words": "a \ud800"}),
        lambda: ToolCall("search", {}, "a \ud800"),
        lambda: Prompt(
            messages=(Message("user", (Text("a"),)),),
            tools=({"function": {"name": "search", "description": "a \ud800"}},),
        ),
    ],
)
def test_half_characters_are_no_text(make):
    with pytest.raises(PromptError, match="half a character|surrogates not allowed"):
        make()


class TestRagTemplate:
    def test_the_default_is_the_authors_layout(self):
        prompt = RagPrompt("who?", ["p1", "p2"]).to_prompt()
        at = prompt.parts.index(Slot())
        assert Prompt(prompt.parts[:at]).text == "[1] p1\n[2] p2\n\n"
        assert Prompt(prompt.parts[at:]).text == "Question: who?\nAnswer:"

    def test_without_passages_the_slot_comes_first(self):
        prompt = RagPrompt("who?", []).to_prompt()
        assert prompt.parts[0] == Slot()
        assert prompt.text == "Question: who?\nAnswer:"

    @given(st.text(), st.lists(st.text(), max_size=4))
    def test_question_and_passages_go_in_verbatim_and_untrusted(self, question, passages):
        prompt = RagPrompt(question, passages).to_prompt()
        untrusted = [part.text for part in prompt.parts if isinstance(part, Text) and not part.trusted]
        assert untrusted == [text for text in (*passages, question) if text]
        numbered = "".join(f"[{i}] {passage}\n" for i, passage in enumerate(passages, 1))
        assert prompt.text == numbered + ("\n" if passages else "") + f"Question: {question}\nAnswer:"

    def test_instruction_stands_between_slot_and_question(self):
        prompt = RagPrompt("q", ["p"], RagTemplate(instruction="Answer briefly.\n")).to_prompt()
        at = prompt.parts.index(Slot())
        assert prompt.parts[at + 1] == Text("Answer briefly.\n", trusted=True)
        assert prompt.text.endswith("Answer briefly.\nQuestion: q\nAnswer:")

    def test_a_chat_is_one_user_message_and_its_system_message(self):
        prompt = RagPrompt("q", ["p"], RagTemplate(chat=True, system="Be kind.")).to_prompt()
        assert [message.role for message in prompt.messages] == ["system", "user"]
        assert prompt.messages[0].parts == (Text("Be kind.", trusted=True),)
        assert prompt.messages[1].parts == RagPrompt("q", ["p"]).to_prompt().parts

    def test_literal_braces_are_doubled(self):
        template = RagTemplate(passage="{{{passage}}}\n", question="{{}} {question}")
        assert RagPrompt("{question}", ["{0}"], template).to_prompt().text == "{{0}}\n\n{} {question}"

    def test_round_trip_through_json(self):
        template = RagTemplate(passage="- {passage}\n", instruction="Briefly.", system="s", chat=True)
        assert RagTemplate.from_dict(json.loads(json.dumps(template.to_dict()))) == template

    @pytest.mark.parametrize(
        "fields",
        [
            {"passage": "no placeholder"},
            {"passage": "{passage} {passage}"},
            {"passage": "{passage} {question}"},
            {"passage": "{passage.__class__}"},
            {"question": "{question!r}"},
            {"question": "{question:>10}"},
            {"question": "{question"},
            {"system": "needs chat"},
            {"context_end": None},
            {"chat": "yes"},
            {"slot": "of a later version"},
        ],
    )
    def test_malformed_templates_are_refused(self, fields):
        with pytest.raises(PromptError):
            RagTemplate.from_dict(fields)


class TestMarker:
    def test_marker_is_printable_and_needs_no_escaping_anywhere(self):
        assert SLOT_MARKER.isprintable()
        assert html.escape(SLOT_MARKER, quote=True) == SLOT_MARKER
        assert list(Formatter().parse(SLOT_MARKER)) == [(SLOT_MARKER, None, None, None)]
        assert (
            jinja2.Environment(autoescape=True).from_string(SLOT_MARKER + "{{ x }}").render(x=SLOT_MARKER)
            == SLOT_MARKER * 2
        )
        assert SLOT_MARKER.strip() == SLOT_MARKER

    @given(TEXTS)
    def test_escape_is_undone_and_hides_the_marker(self, text):
        assert unescape(escape(text)) == text
        assert "⟦" not in escape(text)

    @given(TEXTS, TEXTS)
    def test_escape_goes_character_by_character(self, left, right):
        assert escape(left + right) == escape(left) + escape(right)

    @given(TEXTS, TEXTS, TEXTS)
    def test_values_cannot_forge_or_move_the_slot(self, first, context, question):
        rendered = f"{escape(first)}{escape(context)}{SLOT_MARKER}{escape(question)}"
        assert parse_marked(rendered) == Prompt((Text(first + context), Slot(), Text(question)))

    @given(TEXTS, st.data())
    def test_cutting_an_escaped_value_makes_no_marker(self, text, data):
        escaped = escape(text)
        cut = data.draw(st.integers(0, len(escaped)))
        assert not parse_marked(escaped[cut:] + escaped[:cut]).has_slot

    def test_no_marker_is_no_slot_and_two_are_an_error(self):
        assert parse_marked("") == Prompt((Text(""),))
        with pytest.raises(PromptError, match="one slot"):
            parse_marked(f"a{SLOT_MARKER}b{SLOT_MARKER}")

    def test_rendered_text_is_untrusted(self):
        assert not any(
            part.trusted for part in parse_marked(f"a{SLOT_MARKER}b").parts if isinstance(part, Text)
        )


def test_importing_prompts_loads_neither_torch_nor_transformers():
    code = "import sys, spring_rag.prompt; assert not {'torch', 'transformers', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
