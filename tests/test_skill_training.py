"""Test training a skill: examples that end in a choice, a loss of the choice alone, and an artifact with its task and calibration."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from toy_parts import ANSWERABLE, BACKBONE, text_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode, encode_target
from spring_rag.errors import DataError, TokensError, TrainingError
from spring_rag.evaluation.choices import (
    accuracy,
    at_coverage,
    auroc,
    calibration_error,
    citation_scores,
    risk_coverage,
)
from spring_rag.evaluation.skills import score_skill
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt
from spring_rag.skills import SKILLS
from spring_rag.skills.choosing import Choice, Texts
from spring_rag.tokens import VirtualTokens
from spring_rag.training import (
    RagExamples,
    TrainingRecipe,
    initial_rows,
    objective,
    objectives,
    train_tokens,
)
from spring_rag.training.dataset import SampleIndex

EXAMPLE = RagExample("Who is it?", ("Ann",), ("Ann a", "Bob b", "Cid c"))


def toy_examples(count: int, beside: int) -> list[RagExample]:
    """Questions whose own document is among others."""
    texts = [text_of(one) for one in ANSWERABLE]
    found = []
    for number, one in enumerate(ANSWERABLE[:count]):
        others = Random(number).sample([text for text in texts if text != texts[number]], beside)
        found.append(RagExample(one.question, (one.answer,), (texts[number], *others)))
    return found


class TestExamples:
    def test_any_word_of_a_passage_with_the_answer_cites_it(self, tokenizer: PreTrainedTokenizerFast) -> None:
        recipe = TrainingRecipe(task="cite", num_tokens=4, min_passages=3, max_passages=3, max_length=250)
        data = RagExamples([EXAMPLE], tokenizer, replace(recipe, unanswerable=0.001))
        item = data[SampleIndex(0)]
        encoded, target = item.example
        assert item.among is not None
        (shares,) = item.among
        assert tokenizer.decode(encoded.ids).endswith("Question: Who is it?\nAnswer: ")
        ann, bob, cid = (set(encode(f" {one}", tokenizer).ids) for one in EXAMPLE.passages)
        none = set(encode_target("none", tokenizer))
        assert {one for one, share in shares.items() if share == 1} == ann - bob - cid - none
        assert {one for one, share in shares.items() if share == 0} >= (bob | cid) - ann - none
        assert len(target) == 1
        assert shares[target[0]] == 1
        assert not {tokenizer.bos_token_id, *(ann & bob & cid)} & set(shares)

    def test_what_all_targets_begin_with_is_part_of_the_question(self) -> None:
        made = Texts([(4, 5, 2), (4, 6, 2), (4, 5, 7, 2)]).choice([2])
        assert made == Choice((4,), (5, 7), ({5: 1.0, 6: 0.0}, {2: 0.0, 7: 1.0}))

    @pytest.mark.parametrize("task", ["answerable", "check"])
    def test_prompts_are_those_of_inference(self, task: str, tokenizer: PreTrainedTokenizerFast) -> None:
        recipe = TrainingRecipe(
            task=task, num_tokens=4, min_passages=1, max_passages=1, max_length=250, unanswerable=0.001
        )
        asked, target = RagExamples([EXAMPLE], tokenizer, recipe)[SampleIndex(0)].example
        prompt = encode(RagPrompt("Who is it?", ["Ann a"], recipe.answer_template), tokenizer)
        assert asked == replace(prompt, ids=(*prompt.ids, *asked.ids[len(prompt.ids) :]))
        if (
            task == "check"
        ):  # its tokens are trained to write the answer, which `check` then finds likely or not
            assert asked == prompt
            assert target == encode_target("Ann", tokenizer)

    def test_a_task_brings_what_it_needs(self) -> None:
        recipe = TrainingRecipe(task="answerable")
        skill = SKILLS["answerable"]
        assert (recipe.init_text, recipe.unanswerable) == (skill.init_text, skill.robbed)
        assert recipe.answer_template.question == skill.line
        assert TrainingRecipe(task="cite", unanswerable=0.3, init_text="a").unanswerable == 0.3
        with pytest.raises(
            TrainingError, match="task = 'sing'; choose one of answer, answerable, cite, check"
        ):
            TrainingRecipe(task="sing")

    def test_skills_may_use_all_rows_at_once(self) -> None:
        recipe = TrainingRecipe(task="cite", num_tokens=7, k_schedule="all")
        assert {k for seed in range(9) for k in recipe.draw_ks(Random(seed))} == {7}

    def test_questions_without_room_are_named(self, tokenizer: PreTrainedTokenizerFast) -> None:
        recipe = TrainingRecipe(task="check", num_tokens=4, max_length=60)
        with pytest.raises(DataError, match="question and answer are too long"):
            RagExamples([replace(EXAMPLE, answers=("Ann " * 20,))], tokenizer, recipe).check()


def test_the_loss_of_a_choice_is_that_among_its_ids(llama: PreTrainedModel) -> None:
    matrix = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    examples = [(encode_ids([5, 6, 7, 8], 2), (9, 11)), (encode_ids([4, 6], 1), (12,))]
    chosen_from = [(9, 10), (11,), (12, 13, 14)]
    rights = [9, 11, 12]
    among = [
        {one: float(one == right) for one in ids} for ids, right in zip(chosen_from, rights, strict=True)
    ]
    found = objectives(llama, examples, matrix, [3], among=among)[0]
    logits = []
    for encoded, target in examples:
        ids = torch.tensor([*encoded.ids, *target[:-1]])
        table = llama.get_input_embeddings()(ids)
        inputs = torch.cat([table[: encoded.slot], matrix, table[encoded.slot :]])[None]
        logits += list(llama(inputs_embeds=inputs).logits[0, -len(target) :])
    losses = [
        -row[list(ids)].log_softmax(0)[ids.index(one)]
        for row, ids, one in zip(logits, chosen_from, rights, strict=True)
    ]
    expected = torch.stack(losses).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, whole = (torch.autograd.grad(one, matrix)[0] for one in (found, expected))
    assert (gradient - whole).norm() <= 1e-5 * whole.norm()
    assert found < objective(llama, examples, matrix, 3)


def test_of_several_right_words_any_will_do(llama: PreTrainedModel) -> None:
    matrix = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    example = (encode_ids([5, 6, 7, 8], 2), (9,))
    found = objectives(llama, [example], matrix, [3], among=[{9: 1.0, 10: 0.5, 11: 0.0}])[0]
    alone = [
        objectives(llama, [example], matrix, [3], among=[{one: float(one == each) for one in (9, 10, 11)}])[0]
        for each in (9, 10)
    ]
    nine, ten = (math.exp(-each.item()) for each in alone)
    assert found.item() == pytest.approx(-math.log(nine + ten / 2), rel=1e-5)


def encode_ids(ids: list[int], slot: int):  # type: ignore[no-untyped-def]
    from spring_rag.encoding import Encoded

    return Encoded(tuple(ids), slot)


def test_a_tiny_skill_is_learnt_in_seconds(tmp_path: Path) -> None:
    backend = LocalBackend.from_pretrained(BACKBONE, device="cpu")
    robbed = [replace(one, passages=one.passages[1:]) for one in toy_examples(24, 1)]
    recipe = TrainingRecipe(
        task="answerable", num_tokens=2, k_schedule="all", max_steps=12, learning_rate=0.05, max_length=300
    )
    tokens = train_tokens(backend.hf_model, backend.tokenizer, robbed, recipe, tmp_path)
    assert (tokens.task, tokens.calibration) == ("answerable", None)
    model = SpringModel.from_backend(backend)
    untrained = VirtualTokens(
        initial_rows(backend.hf_model, backend.tokenizer, recipe.init_text, 2),
        backbone=tokens.backbone,
        template=tokens.template,
        task="answerable",
    )
    before, after = [], []
    for found, some in ((before, untrained), (after, tokens)):
        model.add_skill(some)
        found += [model.ask(one.question, one.passages, max_new_tokens=1) for one in robbed[:4]]
    assert max(one.answerable or 0 for one in after) < 0.2 < max(one.answerable or 0 for one in before)


def test_cite_is_learnt_in_seconds(tmp_path: Path) -> None:
    """Of four passages in random order, from an untrained text: more than twice as often right as by chance."""
    backend = LocalBackend.from_pretrained(BACKBONE, device="cpu")
    examples = toy_examples(len(ANSWERABLE), 3)
    shuffled = [
        replace(one, passages=tuple(Random(number).sample(one.passages, 4)))
        for number, one in enumerate(examples[-40:])
    ]
    recipe = TrainingRecipe(
        task="cite",
        num_tokens=6,
        k_schedule="all",
        max_steps=12,
        batch_size=16,
        learning_rate=0.02,
        max_length=500,
        min_passages=4,
        max_passages=4,
        unanswerable=0.001,
    )
    tokens = train_tokens(
        backend.hf_model, backend.tokenizer, examples[:-40], recipe, tmp_path, save_steps=500
    )
    model = SpringModel.from_backend(backend)
    model.add_skill(tokens)
    found = [model.ask(one.question, one.passages, max_new_tokens=1).citations for one in shuffled]
    right = [
        one.passages.index(own.passages[0]) + 1 for one, own in zip(shuffled, examples[-40:], strict=True)
    ]
    share = sum(cited[:1] == [number] for cited, number in zip(found, right, strict=True)) / len(right)
    assert share > 0.5


def test_probabilities_are_calibrated_on_held_out_examples(tmp_path: Path) -> None:
    backend = LocalBackend.from_pretrained(BACKBONE, device="cpu")
    recipe = TrainingRecipe(
        task="answerable", num_tokens=2, max_steps=1, batch_size=2, max_passages=2, max_length=300
    )
    made = train_tokens(
        backend.hf_model, backend.tokenizer, toy_examples(4, 3), recipe, tmp_path, toy_examples(20, 3)
    )
    assert made.training is not None
    assert {"eval_auroc", "eval_auroc_k2", "eval_accuracy_k2"} <= set(made.training["evaluation"])
    loaded = VirtualTokens.from_pretrained(tmp_path)
    assert loaded.task == "answerable"
    assert loaded.calibration == made.calibration != None  # noqa: E711
    assert loaded.template == recipe.answer_template
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["task"] == "answerable"
    assert set(config["calibration"]) == {"slope", "intercept"}
    model = SpringModel.from_backend(backend)
    model.add_skill(loaded)
    scores = score_skill(model, "answerable", toy_examples(20, 3), passages=2, answers=True).scores
    ranked = made.training["evaluation"]["eval_auroc"]
    assert max(scores["auroc"], 1 - scores["auroc"]) == pytest.approx(max(ranked, 1 - ranked), abs=1e-3)
    assert scores["always_yes"] <= scores["accuracy"] + 0.2


def test_a_calibration_is_made_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(TokensError, match="two finite numbers, slope and intercept"):
        VirtualTokens(torch.ones(1, 2), task="answerable", calibration=(float("nan"), 0.0))
    VirtualTokens(torch.ones(1, 2)).save_pretrained(tmp_path)
    assert VirtualTokens.from_pretrained(tmp_path).task == "answer"


class TestScores:
    def test_of_probabilities(self) -> None:
        yes, truths = [0.9, 0.8, 0.3, 0.2], [True, False, True, False]
        assert auroc(yes, truths) == 0.75
        assert auroc(yes, [True] * 4) == 0.5
        assert accuracy(yes, truths) == 0.5
        assert calibration_error(yes, truths) == pytest.approx((0.1 + 0.8 + 0.7 + 0.2) / 4)

    def test_of_answers_that_are_dared(self) -> None:
        found = risk_coverage([0.1, 0.9, 0.5, 0.3], [0.0, 1.0, 1.0, 0.0])
        assert [(one.coverage, one.score) for one in found] == [
            (0.25, 1.0),
            (0.5, 1.0),
            (0.75, pytest.approx(2 / 3)),
            (1.0, 0.5),
        ]
        assert at_coverage([0.1, 0.9, 0.5, 0.3], [0.0, 1.0, 1.0, 0.0], 0.5) == 1.0

    def test_of_citations(self) -> None:
        found = citation_scores([[2, 1], [], [3]], [[1], [2], []])
        assert (found.precision, found.recall, found.first) == (pytest.approx(1 / 3), 0.5, 0.0)
        assert found.always_first == 0.5
