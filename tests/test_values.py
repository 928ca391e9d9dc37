"""Test where the strings of JSON values are found in the text that a template wrote from them."""

import ast
import json
import secrets

import pytest

from spring_rag.errors import PromptError
from spring_rag.values import replaced, strings_of, where_written

VALUE = {
    "name": "search",
    "text": 'a "quoted" line\nand </s> – <b>',
    "of": [{"an odd key": "it's", "n": 3}, "</s>"],
}


def shown(write, value=VALUE):
    """The pieces of a rendered text that count as the value's own."""

    def rendered(names):
        return f"head {write(replaced(value, names))} tail"

    text = rendered({})
    return [text[start:end] for start, end in where_written(text, strings_of(value), rendered)]


def test_words_are_left_out():
    assert strings_of(VALUE) == ['a "quoted" line\nand </s> – <b>', "an odd key", "it's", "</s>"]
    assert strings_of({"a": 1, "b-c.d": ["string", ""]}) == []


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False, indent=4),
        lambda value: json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False),
    ],
)
def test_json(write):
    found = shown(write)
    assert [json.loads(f'"{each}"') for each in found] in (
        strings_of(VALUE),
        [each[1:-1] for each in map(json.dumps, strings_of(VALUE))],
        [json.dumps(each, ensure_ascii=False)[1:-1] for each in strings_of(VALUE)],
    )


@pytest.mark.parametrize(
    "text", ["one's way", 'the "best" way', "both: ' and \"", "neither </s>", "a \\ and\na line"]
)
def test_python(text):
    """Which quotation marks Python takes depends on the text, so they belong to it; some templates always take single ones."""

    def single(value):
        escaped = value["a"].replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"(a='{escaped}', b=[1])"

    assert shown(repr, {"a": text, "b": ["it's", 1]}) == [repr(text), repr("it's")]
    (found,) = shown(single, {"a": text})
    assert ast.literal_eval(found) == text
    assert found.startswith("'")


def test_as_it_is_and_more_than_once():
    assert shown(lambda value: f"<{value['text']}|{value['text']}|{value['of'][1]}>") == [
        VALUE["text"]
    ] * 2 + ["</s>"]


def test_what_the_template_drops():
    assert shown(lambda value: value["name"]) == []


def test_what_cant_be_followed_is_untrusted_as_a_whole():
    found = shown(lambda value: f"{value['text'].replace('<', '{')} and {value['of'][1].replace('<', '{')}")
    assert found == [f"{VALUE['text']} and </s>".replace("<", "{")]


def test_what_has_nothing_left_of_it_is_refused():
    with pytest.raises(PromptError, match="can't be followed"):
        shown(lambda value: value["text"].swapcase())


def test_a_template_that_gives_other_things_each_time_is_refused():
    with pytest.raises(PromptError, match="can't be followed"):
        where_written("a </s>", ["</s>"], lambda names: secrets.token_hex(4))
