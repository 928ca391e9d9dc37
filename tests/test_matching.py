"""Test whether a text holds an answer: one rule for all."""

import pytest
from transformers import PreTrainedTokenizerFast

from spring_rag.data.attach import attach
from spring_rag.data.examples import RagExample
from spring_rag.data.matching import holds, normalise, stands_in
from spring_rag.evaluation.datasets import answer_retrieved
from spring_rag.evaluation.metrics import contains
from spring_rag.training import RagExamples, TrainingRecipe


def test_normalise_as_squad_does() -> None:
    assert normalise(" The  Eiffel-Tower, (an) icon! ") == "eiffeltower icon"
    assert normalise("Thebes an-the a.b") == "thebes anthe ab"


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("1", "Built in 1811.", False),
        ("1811", "Built in 1811-1813.", True),
        ("1811", "Built in 1811–1813.", True),
        ("Ada Quill", "ADA QUILL's bridge", True),
        ("the US", "A U.S. ship", True),
        ("The Beatles", "Beatles records", True),
        ("$5", "It was $5.", True),
        ("Öl", "Köln", False),
        ("Öl", "Öl.", True),
        ("東京", "首都は東京です", True),
        ("東京", "首都は京都です", False),
        ("Honda", "日本のHondaです", True),
        ("서울", "서울은 크다", True),
        ("A", "A ship", False),
        ("", "A ship", False),
        ("!", "Oh!", False),
    ],
)
def test_everyone_finds_an_answer_alike(
    answer: str, text: str, expected: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert stands_in(text, [answer]) is holds(text, [answer]) is expected
    assert contains(text, [answer]) == expected
    example = RagExample("Who?", (answer,), (text,))
    assert answer_retrieved(example) is expected
    assert attach([example], [lambda questions, _: [[text]] * len(questions)]).found == expected
    beside = RagExample("Who?", (answer,), ("B b", text))
    accepted = RagExamples([beside], tokenizer, TrainingRecipe(unanswerable=1.0)).accepted(0, ["B b"])
    assert accepted == (("not stated",) if expected else (answer,))


@pytest.mark.parametrize("answer", ["yes", "No", "true."])
def test_a_judgement_stands_in_an_answer_and_in_no_passage(answer: str) -> None:
    text = f"{answer}, it is"
    assert stands_in(text, [answer])
    assert contains(text, [answer]) == 1
    assert not holds(text, [answer])
    example = RagExample("Is it?", (answer,), (text,))
    assert not answer_retrieved(example)
    done = attach(
        [example], [lambda questions, _: [["Something else."]] * len(questions)], answer_passage="forbid"
    )
    assert done.left_out == ["Is it?"]
