"""Test how likely an answer is said to be: as its tokens are, asked one after the other."""

from dataclasses import replace

import pytest
from toy_parts import ANSWERABLE, BACKBONE, MAX_TOKENS, TOKENS, text_of

from spring_rag import RagPrompt, SpringModel
from spring_rag.answering import answers
from spring_rag.backends.base import Generation, GenerationSettings, Request
from spring_rag.encoding import encode

PASSAGES = [text_of(one) for one in ANSWERABLE[:3]]
SETTINGS = GenerationSettings(max_new_tokens=MAX_TOKENS, logprob=True)


@pytest.fixture(scope="module")
def model() -> SpringModel:
    return SpringModel.from_pretrained(BACKBONE, tokens=TOKENS, device="cpu")


@pytest.fixture(scope="module")
def requests(model: SpringModel) -> list[Request]:
    prompts = [RagPrompt(one.question, PASSAGES[:count]) for count, one in enumerate(ANSWERABLE[:3], 1)]
    encoded = [encode(prompt, model.tokenizer) for prompt in prompts]
    return [Request(each, None, k) for each, k in zip(encoded, (0, 3, 50), strict=True)]


def one_by_one(model: SpringModel, request: Request, written: Generation) -> float:
    """The sum over an answer's tokens, each asked for behind those before it."""
    ids = request.encoded.ids
    steps = [
        replace(
            request,
            encoded=replace(request.encoded, ids=(*ids, *written.token_ids[:at])),
            choices=(one,),
        )
        for at, one in enumerate(written.token_ids)
    ]
    return sum(one.logprobs[0] for one in model.backend.generate(steps, GenerationSettings(max_new_tokens=1)))


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.5, "top_k": 20, "seed": 3}])
def test_it_is_that_of_the_tokens(model: SpringModel, requests: list[Request], sampled: dict) -> None:
    found = answers(model.backend, requests, replace(SETTINGS, **sampled))
    assert len({len(one.token_ids) for one in found}) > 1  # rows that end early are no longer counted
    for request, written in zip(requests, found, strict=True):
        assert written.logprob == pytest.approx(one_by_one(model, request, written), abs=1e-3)


def test_it_counts_what_was_written_up_to_a_stop_string(model: SpringModel, requests: list[Request]) -> None:
    whole = answers(model.backend, requests[2:], SETTINGS)[0]
    settings = replace(SETTINGS, stop=(whole.text[2:4],))
    written = answers(model.backend, requests[2:], settings)[0]
    assert len(written.token_ids) < len(whole.token_ids)
    assert written.logprob == pytest.approx(one_by_one(model, requests[2], written), abs=1e-3)


def test_the_answers_are_the_same(model: SpringModel, requests: list[Request]) -> None:
    found = answers(model.backend, requests, SETTINGS)
    plain = answers(model.backend, requests, replace(SETTINGS, logprob=False))
    assert [replace(one, logprob=None) for one in found] == plain


def test_an_asked_question_tells_it(model: SpringModel) -> None:
    told = model.ask(ANSWERABLE[0].question, PASSAGES, max_new_tokens=MAX_TOKENS)
    prompt = RagPrompt(ANSWERABLE[0].question, PASSAGES, model.template())
    [alone] = answers(
        model.backend,
        [Request(encode(prompt, model.tokenizer), None, len(model.backend.tokens() or ()))],
        SETTINGS,
    )
    assert alone.logprob is not None
    assert alone.logprob < 0
    assert told.logprob == pytest.approx(alone.logprob, abs=1e-3)
