"""Test questions with skills: one batch, one context, and each skill gives the same result as alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

import pytest
import torch
from skill_parts import skill_tokens
from toy_parts import ANSWERABLE, BACKBONE, MAX_TOKENS, TOKENS, text_of

from spring_rag import RagAnswer, RagPrompt, RagTemplate, SpringModel, VirtualTokens, fitting
from spring_rag.asking import ask
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode
from spring_rag.errors import PromptTooLongError, TokensError
from spring_rag.evaluation.skills import score_skill
from spring_rag.skills import SKILLS, Skill

PASSAGES = [text_of(one) for one in ANSWERABLE[:4]]
QUESTION = ANSWERABLE[0].question
ONE = GenerationSettings(max_new_tokens=1)


@pytest.fixture(scope="module")
def answering() -> VirtualTokens:
    return VirtualTokens.from_pretrained(TOKENS)


@pytest.fixture
def model(answering: VirtualTokens) -> SpringModel:
    model = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
    for task in ("answerable", "cite", "check"):
        model.add_skill(skill_tokens(task, answering))
    return model


def test_the_answer_is_the_same_with_skills_and_without(model: SpringModel, answering: VirtualTokens) -> None:
    alone = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
    told = model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)
    bare = alone.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)
    assert told.text == bare.text == alone.answer(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS) != ""
    assert told.usage == bare.usage
    assert bare == RagAnswer(
        bare.text, None, [], None, bare.usage, False, bare.finish_reason, bare.logprob, shown=len(PASSAGES)
    )
    assert told.logprob == pytest.approx(bare.logprob, abs=1e-4)


class Kind(Skill):
    """Tell what is asked for, of the kinds that a question can ask for."""

    name = "kind"
    line = "Question: {question}\nIt asks for a:"
    init_text = "What kind of thing does the question ask for?"

    def targets(self, passages: int) -> tuple[str, ...]:
        return ("name", "number", "place")

    def target(self, example: RagExample, claim: str | None, passages: Sequence[str]) -> str:
        return "name" if example.question.startswith("Who") else "place"


def test_a_further_skill_is_asked_and_scored_without_more_code(
    model: SpringModel, answering: VirtualTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SKILLS, "kind", Kind())
    before = model.ask(QUESTION, PASSAGES, max_new_tokens=1)
    model.add_skill(skill_tokens("kind", answering))
    told = model.ask(QUESTION, PASSAGES, max_new_tokens=1)
    assert set(before.skills) == {"answerable", "cite"}
    assert set(told.skills) == {"answerable", "cite", "kind"}
    assert len(told.skills["kind"]) == 3
    assert sum(told.skills["kind"]) == pytest.approx(1)
    assert (told.answerable, told.citations) == (before.answerable, before.citations)
    name = next(name for name in model.backend.bank if model.backend.bank[name].task == "kind")
    scores = score_skill(
        model,
        name,
        [RagExample(one.question, (one.answer,), tuple(PASSAGES)) for one in ANSWERABLE[:6]],
        passages=2,
    ).scores
    assert set(scores) == {"accuracy"}


def test_each_skill_says_together_what_it_says_alone(model: SpringModel, answering: VirtualTokens) -> None:
    together = model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)
    for task in ("answerable", "cite"):
        alone = SpringModel.from_pretrained(BACKBONE, device="cpu")
        alone.add_skill(skill_tokens(task, answering))
        told = alone.ask(QUESTION, PASSAGES, max_new_tokens=1)
        if task == "answerable":
            assert told.answerable == pytest.approx(together.answerable, abs=1e-6)
        else:
            assert told.citations == together.citations


def test_many_questions_are_answered_as_one_by_one(model: SpringModel) -> None:
    questions = [one.question for one in ANSWERABLE[:3]]
    shown = [PASSAGES, PASSAGES[:1], []]
    prompts = [RagPrompt(question, some) for question, some in zip(questions, shown, strict=True)]
    many = model.ask_many(prompts, max_new_tokens=MAX_TOKENS)
    for question, passages, found in zip(questions, shown, many, strict=True):
        alone = model.ask(question, passages, max_new_tokens=MAX_TOKENS)
        close = {"answerable": None, "logprob": None, "skills": {}}
        assert replace(found, **close) == replace(alone, **close)
        assert found.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert found.answerable == pytest.approx(alone.answerable, abs=1e-5)
        for task, probabilities in alone.skills.items():
            assert found.skills[task] == pytest.approx(probabilities, abs=1e-5)


def test_the_context_is_computed_once(model: SpringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    forward = model.backend.hf_model.model.embed_tokens.forward  # type: ignore[attr-defined]
    monkeypatch.setattr(
        model.backend.hf_model.model.layers[0],  # type: ignore[attr-defined]
        "forward",
        counting(model.backend.hf_model.model.layers[0].forward, read),  # type: ignore[attr-defined]
    )
    assert forward is not None
    passages = PASSAGES * 3
    answer = model.ask(QUESTION, passages, max_new_tokens=2)
    wide = [tokens for tokens in read if tokens > answer.usage.context / 2]
    assert wide == [answer.usage.context]


def counting(forward, read):  # type: ignore[no-untyped-def]
    def counted(hidden_states, *args, **kwargs):  # type: ignore[no-untyped-def]
        read.append(hidden_states.shape[1])
        return forward(hidden_states, *args, **kwargs)

    return counted


def test_each_prompt_is_encoded_once(model: SpringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[RagPrompt] = []
    monkeypatch.setattr(fitting, "encode", lambda prompt, _: encoded.append(prompt) or encode(prompt, _))
    model.ask(QUESTION, PASSAGES, max_new_tokens=2)
    lines = [prompt.template.question for prompt in encoded]
    answer = RagTemplate().question
    assert lines == [answer, SKILLS["answerable"].line, answer]  # `cite` is asked by the answer's line


def test_a_choice_is_what_the_backbone_says_of_the_next_token(model: SpringModel) -> None:
    prompt = RagPrompt(QUESTION, PASSAGES[:2])
    encoded = encode(prompt, model.tokenizer)
    ids = (5, 17, 300)
    written = Request(encoded, None, 3, prompt.to_prompt())
    (told, answer) = model.backend.generate(
        [replace(written, choices=ids), written], GenerationSettings(max_new_tokens=4)
    )
    alone = model.backend.generate([written], GenerationSettings(max_new_tokens=4))[0]
    assert answer == alone
    assert (told.text, told.token_ids, told.usage.generated) == ("", (), 0)
    backend = model.backend
    rows = backend.bank.rows("default", 3)
    with torch.no_grad():
        before, after = (
            backend.embedding.embed(torch.tensor(one)) for one in (encoded.context_ids, encoded.suffix_ids)
        )  # type: ignore[attr-defined]
        logits = backend.hf_model(inputs_embeds=torch.cat([before, rows, after])[None]).logits[0, -1]  # type: ignore[attr-defined]
    assert told.logprobs == pytest.approx(logits.log_softmax(-1)[list(ids)].tolist(), abs=1e-4)


class TestWithholding:
    def test_an_answer_is_withheld_below_the_least_probability(
        self, model: SpringModel, answering: VirtualTokens
    ) -> None:
        model.add_skill(skill_tokens("answerable", answering, calibration=(0.0, -1.0)))
        sure = 1 / (1 + 2.718281828**1.0)
        told = model.ask(QUESTION, PASSAGES, 0.5, max_new_tokens=MAX_TOKENS)
        assert told.answerable == pytest.approx(sure)
        assert (told.text, told.citations, told.withheld) == ("", [], True)
        told = model.ask(QUESTION, PASSAGES, 0.2, max_new_tokens=MAX_TOKENS)
        assert told.text
        assert not told.withheld

    def test_without_the_skill_nothing_can_be_withheld(self, answering: VirtualTokens) -> None:
        bare = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
        with pytest.raises(
            TokensError, match=r"min_answerable = 0\.5 needs virtual tokens of the task 'answerable'"
        ):
            bare.ask(QUESTION, PASSAGES, 0.5)

    def test_the_least_is_a_probability(self, model: SpringModel) -> None:
        with pytest.raises(ValueError, match=r"min_answerable is 2; it is a probability, from 0 to 1"):
            model.ask(QUESTION, PASSAGES, 2)


class TestCheck:
    def test_answers_from_anywhere_are_checked(self, model: SpringModel) -> None:
        right, wrong = (
            model.check(QUESTION, answer, PASSAGES) for answer in ("Olerworth Karhald", "the sea")
        )
        assert 0 < right < 1
        assert right != wrong

    def test_it_is_how_likely_the_answer_is(self, answering: VirtualTokens) -> None:
        model = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
        model.add_skill(replace(answering, task="check"))
        assert model.check(QUESTION, ANSWERABLE[0].answer, PASSAGES) > model.check(QUESTION, "no", PASSAGES)
        told = model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)
        assert told.logprob is not None
        assert model.check(QUESTION, told.text, PASSAGES) == pytest.approx(exp(told.logprob), rel=1e-3)

    def test_an_answer_longer_than_the_context_is_refused(self, model: SpringModel) -> None:
        with pytest.raises(PromptTooLongError, match=r"the answer to check has \d+ tokens, .* check a part"):
            model.check(QUESTION, "the sea " * 3000, PASSAGES)

    def test_without_the_skill_nothing_is_checked(self, answering: VirtualTokens) -> None:
        bare = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
        with pytest.raises(TokensError, match="checking an answer needs virtual tokens of the task 'check'"):
            bare.check(QUESTION, "the sea", PASSAGES)


def test_all_see_the_passages_that_fit_beside_each(model: SpringModel) -> None:
    model.backend.context_length = 400
    passages = PASSAGES * 4
    prompt = RagPrompt(QUESTION, passages)
    asked = ask(model.backend, prompt, None, 2, GenerationSettings(MAX_TOKENS), least=None)
    contexts = {request.encoded.context_ids for request in asked.requests}
    assert len(contexts) == 1
    assert 0 < len(next(iter(contexts))) < 400
    told = model.ask(QUESTION, passages, num_tokens=2, max_new_tokens=MAX_TOKENS)
    assert 0 < told.shown == asked.shown < len(passages)
    with pytest.raises(PromptTooLongError):
        model.ask("why " * 400, passages)


def test_a_skill_without_a_layout_is_asked_by_its_own_line(answering: VirtualTokens) -> None:
    model = SpringModel.from_pretrained(BACKBONE, tokens=answering, device="cpu")
    model.add_skill(VirtualTokens(answering.matrix, backbone=answering.backbone, task="cite"))
    prompt = RagPrompt(QUESTION, PASSAGES, RagTemplate(passage="{passage}\n"))
    asked = ask(model.backend, prompt, None, 2, GenerationSettings(MAX_TOKENS), least=None)
    (request, *_) = asked.skills["cite"].requests
    assert (
        request.prompt
        == replace(prompt, template=replace(prompt.template, question=SKILLS["cite"].line)).to_prompt()
    )


def test_tokens_that_answer_are_no_further_skill(model: SpringModel, answering: VirtualTokens) -> None:
    with pytest.raises(TokensError, match="trained to answer, which is no further skill"):
        model.add_skill(answering)


def test_other_layouts_of_the_passages_cost_time_and_change_nothing(
    model: SpringModel, answering: VirtualTokens
) -> None:
    before = model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS)
    other = replace(answering.template or RagTemplate(), passage="{passage}\n")
    told = model.ask(QUESTION, PASSAGES, max_new_tokens=MAX_TOKENS, template=other)
    assert told.answerable == pytest.approx(before.answerable, abs=1e-6)
    assert told.citations == before.citations


def test_passages_go_where_an_answer_would_grow_over_a_switch_of_positions(model: SpringModel) -> None:
    passages = [*PASSAGES, "A last passage of no use at all."]
    whole = model.ask(QUESTION, passages, max_new_tokens=MAX_TOKENS).usage
    model.backend.position_switch = whole.context + whole.virtual + whole.suffix + 2
    told = model.ask(QUESTION, passages, max_new_tokens=MAX_TOKENS)
    assert told.usage.context < whole.context
