"""Test settings under other models' names."""

import pytest

from spring_rag.bridge.settings import in_our_words


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_new_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": None, "temperature": None, "top_p": None, "seed": None}, {"seed": None}),
        ({"pipeline_kwargs": {"max_new_tokens": 3}, "x": 1}, {"max_tokens": 3, "x": 1}),
        (
            {"generate_kwargs": {"top_k": 3, "temperature": 0.5, "do_sample": True}},
            {"top_k": 3, "temperature": 0.5},
        ),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.0, "n": 1, "pipeline_kwargs": None, "num_beams": None}, {}),
        ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
    ],
)
def test_they_are_understood(given, expected):
    assert in_our_words(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"repetition_penalty": 1.2},
            "repetition_penalty=1.2 isn't supported; an answer is decoded by max_tokens",
        ),
        ({"num_beams": 4}, "num_beams=4 isn't supported"),
        ({"max_new_tokens": 3, "max_tokens": 4}, "the same setting; give max_tokens only"),
        ({"do_sample": True}, "needs a temperature"),
        (
            {"model_kwargs": {"temperature": 0.1, "device_map": "auto"}},
            "load the backbone; temperature in them",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        in_our_words(given)
