"""Test values of calls' arguments as backbones write them."""

import pytest

from spring_rag.call_values import typed

STRING_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("2024", {"type": "string"}, "2024"),
        ("2024", STRING_OR_NULL, "2024"),
        ("a", STRING_OR_NULL, "a"),
        ("None", STRING_OR_NULL, None),
        ("null", STRING_OR_NULL, None),
        ("None", {"type": "string"}, "None"),
        ("True", {"type": "boolean"}, True),
        ("False", {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, False),
        ("3", {"type": ["integer", "null"]}, 3),
        ("3", {"anyOf": [{"type": "string"}, {"type": "number"}]}, 3),
        ('"3"', {"type": ["string", "number"]}, '"3"'),
        ("[1]", {"type": "array"}, [1]),
        ("[1]", {"type": ["string", "integer"]}, "[1]"),
        ("three", {"type": "integer"}, "three"),
        ("null", {}, None),
        ("None", {}, "None"),
        ("3", None, 3),
    ],
)
def test_a_text_gets_the_type_that_its_schema_names(text, schema, expected):
    found = typed(text, schema)
    assert (found, type(found)) == (expected, type(expected))
