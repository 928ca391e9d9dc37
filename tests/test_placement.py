"""The one rule for where a slot goes, apart from any framework."""

import re
import warnings

import pytest

from spring_rag.placement import Place, question_to_repeat, slot_offsets


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
