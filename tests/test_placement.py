"""Test the one rule for where a slot goes, apart from any framework."""

import re
import warnings

import pytest

from spring_rag.bridge.marks import FOLLOWING_MARK, MARK
from spring_rag.bridge.placement import (
    Place,
    TemplateText,
    put_slot,
    question_to_repeat,
    slot_offsets,
    words_between,
)
from spring_rag.bridge.syntax import BRACES, JINJA, Syntax
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER


def places(texts, name):
    return [
        Place(i, *found.span()) for i, text in enumerate(texts) for found in re.finditer(rf"<{name}>", text)
    ]


def put(*texts: str) -> list[str]:
    """The texts with the slot in its best place; `<c>` is the context, `<q>` the question."""
    index, offset = slot_offsets(texts, places(texts, "c"), places(texts, "q"))[0]
    found = list(texts)
    found[index] = f"{texts[index][:offset]}|{texts[index][offset:]}"
    return found


@pytest.mark.parametrize(
    "expected",
    [
        ["<c>\n\n|Question: <q>\nAnswer:"],
        ["<c>\n|<q>\n<q>"],
        ["<c>| so: <q>"],
        ["<c>\n<c>| so: <q>"],
        ["<q>\n<c>\n|Again: <q>"],
        ["Use this:\n<c>\n", "Be brief.\n|Question: <q>"],
        ["<c>", "|<q>"],
        ["Facts: <c>\nGive details.\n|"],
        ["Facts: <c>\nGive details.|", "Be brief."],
    ],
)
def test_before_the_questions_line(expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert put(*[text.replace("|", "") for text in expected]) == expected


@pytest.mark.parametrize("expected", [["<q>\n<c>|\nAnswer:"], ["<q>", "<c>| is all."]])
def test_a_question_before_the_context_warns_where_it_was_called(expected):
    with pytest.warns(UserWarning, match="question stands before the context") as caught:
        assert put(*[text.replace("|", "") for text in expected]) == expected
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{c}\n\nQuestion: {q}\nAnswer:", None),
        ("{c}\nGiven the context information, answer the query.\nQuery: {q}\nAnswer:", None),
        ("{c}\nUse only the passages above to answer this question: {q}", "'Use only the passages above to"),
        ("{c} Use only the passages above to answer. Question: {q}", "'Use only the passages above to"),
        (f"{{c}}\n{SLOT_MARKER}\nQuestion: {{q}}", None),
        (
            f"{{c}}\n{SLOT_MARKER}Be brief, and say nothing but the answer.\nQuestion: {{q}}",
            "'Be brief, and say nothing but the answer. Question:'",
        ),
    ],
)
def test_words_between_slot_and_question_are_warned_of(template, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        put_slot([TemplateText(template, BRACES)], ["c"], "q", mark=MARK)
    assert [told in str(each.message) for each in caught] == ([] if told is None else [True])
    assert all(each.filename == __file__ for each in caught)


def test_words_of_other_messages_count_too():
    texts = ["<c>| One two.", "Three four\n five.", "Six: <q>"]
    slot = (0, texts[0].index("|") + 1)
    assert words_between(texts, slot, places(texts, "q")) == "One two. Three four five. Six:"
    assert words_between(texts, (2, 6), places(texts, "q")) == ""


def test_others_follow_the_best():
    texts = ["<c>\nQ: <q>\n"]
    assert slot_offsets(texts, places(texts, "c"), places(texts, "q")) == [(0, 4), (0, 7), (0, 3)]
    texts = ["<c>.\n"]
    assert slot_offsets(texts, places(texts, "c"), []) == [(0, 5), (0, 4), (0, 3)]


@pytest.mark.parametrize(
    ("texts", "repeated"),
    [
        (["<c>\nQuestion: <q>\n"], None),
        (["<q>\n<c>\nAgain: <q>\n"], None),
        (["<c>", "<q>"], None),
        (["Be brief.\nQuestion: <q> \nContext: <c>\nAnswer:"], "Question: <q>"),
        (["  Question: <q> Context: <c>"], "Question: <q>"),
        (["Old: <c> Question: <q> New: <c>"], "Question: <q>"),
        (["One: <q>\nTwo: <q>\n<c>"], "Two: <q>"),
        (["Asked: <q>", "<c>"], "Asked: <q>"),
    ],
)
def test_what_asks_the_question_again(texts, repeated):
    assert question_to_repeat(texts, places(texts, "c"), places(texts, "q")) == repeated


def source(text: str, syntax: Syntax | None = BRACES) -> TemplateText:
    return TemplateText(text, syntax)


@pytest.mark.parametrize(
    ("sources", "settings", "expected"),
    [
        ([source("{c}\nQ: {q}")], {}, (0, "{c}\n|Q: {q}")),
        ([source("{c}"), source("Q: {q}")], {}, (1, "|Q: {q}")),
        ([source("{c}"), source("q", None)], {}, (1, None)),
        ([source("{c} |"), source("Q: {q}")], {}, (0, "{c} |")),
        ([source("{q} {c}")], {"repeat_question": True}, (0, "{q} {c}\n|{q}")),
        ([source("{{ c }}\n\n{{- q }}", JINJA)], {}, (0, "{{ c }}|\n\n{{- q }}")),
    ],
)
def test_putting_a_mark_in(sources, settings, expected):
    sources = [TemplateText(each.template.replace("|", SLOT_MARKER), each.syntax) for each in sources]
    index, text = put_slot(sources, ["c"], "q", mark=SLOT_MARKER, **settings)
    assert (index, text and text.replace(SLOT_MARKER, "|")) == expected


def test_a_question_that_follows_has_a_mark_of_its_own():
    assert put_slot([source("{c} all.")], ["c"], "q", mark=MARK, question_may_follow=True) == (
        0,
        f"{{c}} all.{FOLLOWING_MARK}",
    )


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ([source("{q}")], {}, "no {c} or {d}.*it uses q: name the right one with context="),
        ([source("{c}")], {}, "no {q}.*it uses c: name the right one with question="),
        ([source("a")], {}, "uses no variable"),
        ([source("c", None), source("{q}")], {}, "the context is a placeholder for messages, 'c'"),
        ([source("{% if c %}{{ c }} {{ q }}{% endif %}", JINJA)], {}, "in one block of the template"),
        ([source("q", None), source("{c}")], {"repeat_question": True}, "'q' can't be repeated"),
        ([source(SLOT_MARKER), source(SLOT_MARKER)], {}, "one slot, this one has 2"),
    ],
)
def test_refusals_say_what_to_do(sources, settings, message):
    with pytest.raises(PromptError, match=message):
        put_slot(sources, ["c", "d"], "q", mark=SLOT_MARKER, **settings)
