"""Test the drawing of training examples: deterministic, in range, fitted, and in batches of similar length."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
from thinking_parts import tokenizer_of
from transformers import PreTrainedTokenizerFast

from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode, encode_target
from spring_rag.errors import DataError
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.training import RagExamples, TrainingRecipe
from spring_rag.training.dataset import SampleIndex, SimilarLengths

RECIPE = TrainingRecipe(num_tokens=4, max_length=250, min_passages=1, max_passages=5, seed=3)
LETTERS = "ABCDEFG"
EXAMPLE = RagExample("Who is it?", ("Ann", "Anna"), tuple(f"{letter} {letter.lower()}" for letter in LETTERS))


@pytest.fixture(scope="module")
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The shared tokenizer with a chat template."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    return made


def drawn(data: RagExamples, index: int = 0) -> str:
    """The letters of the passages, in the order in which they stand in the prompt."""
    (encoded, _), tokenizer = data[SampleIndex(index)].example, data.tokenizer
    context = tokenizer.decode(encoded.context_ids, skip_special_tokens=True)
    return "".join(line.split()[1] for line in context.splitlines() if line)


def test_example_is_the_prompt_of_inference_and_the_first_answer(chatty: PreTrainedTokenizerFast) -> None:
    recipe = replace(RECIPE, min_passages=1, max_passages=1)
    encoded, target = RagExamples([EXAMPLE], chatty, recipe)[SampleIndex(0)].example
    assert encoded == encode(RagPrompt(question="Who is it?", passages=["A a"]), chatty)
    assert target == encode_target("Ann", chatty)


def test_passages_are_the_best_ones_shuffled_anew_each_epoch(chatty: PreTrainedTokenizerFast) -> None:
    data = RagExamples([EXAMPLE], chatty, RECIPE)
    seen = []
    for epoch in range(60):
        data.set_epoch(epoch)
        seen.append(drawn(data))
        assert drawn(data) == seen[-1]
    assert all("".join(sorted(letters)) == LETTERS[: len(letters)] for letters in seen)
    assert set(Counter(map(len, seen))) == {1, 2, 3, 4, 5}
    assert any(letters != "".join(sorted(letters)) for letters in seen)
    other = RagExamples([EXAMPLE], chatty, replace(RECIPE, seed=4))
    assert any(drawn(other, 0) != letters for other.epoch, letters in enumerate(seen))


def test_too_long_examples_lose_their_last_ranked_passages(chatty: PreTrainedTokenizerFast) -> None:
    recipe = replace(RECIPE, min_passages=5)
    whole = len(RagExamples([EXAMPLE], chatty, recipe)[SampleIndex(0)].example[0].ids)
    target = len(encode_target("Ann", chatty))
    short = replace(recipe, max_length=whole + 4 + target - 1)
    data = RagExamples([EXAMPLE], chatty, short)
    for epoch in range(20):
        data.set_epoch(epoch)
        assert "".join(sorted(drawn(data))) == "ABCD"
        assert len(data[SampleIndex(0)].example[0].ids) + 4 + target <= short.max_length


def test_unanswerable_examples_say_so_and_hold_no_answer(chatty: PreTrainedTokenizerFast) -> None:
    passages = ("It was ANNA.", "B b", "C c", "D d", "Or was it Ann?", "F f")
    example = RagExample("Who is it?", ("Ann", "Anna"), passages)
    data = RagExamples([example] * 200, chatty, replace(RECIPE, unanswerable=0.3, min_passages=2))
    says, answers = encode_target("not stated", chatty), encode_target("Ann", chatty)
    targets = Counter()
    for index in range(len(data)):
        encoded, target = data[SampleIndex(index)].example
        context = chatty.decode(encoded.context_ids, skip_special_tokens=True).casefold()
        assert target == (answers if "ann" in context else says)
        assert context
        targets[target] += 1
    assert 40 <= targets[says] <= 80
    assert targets.total() == 200


def test_answers_out_of_reach_are_trained_as_unanswerable_if_asked_for(
    chatty: PreTrainedTokenizerFast,
) -> None:
    below = RagExample("Who is it?", ("Ann",), ("A a", "B b", "Ann"))
    nowhere = RagExample("Who is it?", ("Ann",), ("A a", "B b", "C c"))
    alone = RagExample("Who is it?", ("Ann",), ("Ann",))
    recipe = replace(RECIPE, min_passages=2, max_passages=2)
    answers = encode_target("Ann", chatty)
    assert RagExamples([below], chatty, recipe)[SampleIndex(0)].example[1] == answers
    found = RagExamples([below, nowhere, alone], chatty, replace(recipe, unanswerable=1.0))
    assert [found[SampleIndex(i)].example[1] for i in range(3)] == [
        encode_target("not stated", chatty),
        answers,
        answers,
    ]


def test_an_answer_whose_passage_has_no_room_is_trained_as_unanswerable_if_asked_for(
    chatty: PreTrainedTokenizerFast,
) -> None:
    example = RagExample("Who is it?", ("Ann",), ("A a" * 20, "It was Ann. " + "B b" * 20))
    recipe = replace(RECIPE, min_passages=2, max_passages=2, max_length=120)
    for unanswerable, expected in ((0.0, "Ann"), (0.001, "not stated")):
        item = RagExamples([example], chatty, replace(recipe, unanswerable=unanswerable))[SampleIndex(0)]
        assert item.dropped == 1
        assert item.example[1] == encode_target(expected, chatty)


@pytest.mark.parametrize(
    ("answer", "passage", "held"),
    [
        ("no", "There is no cheese.", False),
        ("1", "Built in 1811.", False),
        ("1811", "Built in 1811.", True),
        ("Ada Quill", "ADA QUILL's bridge", True),
        ("$5", "It was $5.", True),
        ("東京", "首都は東京です", True),
        ("東京", "首都は京都です", False),
    ],
)
def test_what_counts_as_holding_an_answer(
    answer: str, passage: str, held: bool, chatty: PreTrainedTokenizerFast
) -> None:
    data = RagExamples(
        [RagExample("Who?", (answer,), ("A a", passage))], chatty, replace(RECIPE, unanswerable=1.0)
    )
    assert data.accepted(0, ["A a"]) == (("not stated",) if held else (answer,))
    assert data.accepted(0, ["A a", passage]) == data.accepted(0, []) == (answer,)


def test_share_of_chat(chatty: PreTrainedTokenizerFast) -> None:
    text = encode(RagPrompt(question="Who is it?", passages=[]), chatty)
    chat = encode(RagPrompt(question="Who is it?", passages=[], template=RagTemplate(chat=True)), chatty)
    for share, low, high in ((0.0, 0, 0), (0.3, 40, 80), (1.0, 200, 200)):
        data = RagExamples(
            [EXAMPLE] * 200, chatty, replace(RECIPE, chat=share, min_passages=0, max_passages=0)
        )
        kinds = Counter(data[SampleIndex(i)].example[0] for i in range(200))
        assert low <= kinds[chat] <= high
        assert kinds[chat] + kinds[text] == 200


def test_target_ends_the_turn_that_its_prompt_begins(chatty: PreTrainedTokenizerFast) -> None:
    chat = RagExamples([EXAMPLE], chatty, replace(RECIPE, chat=1.0))
    text = RagExamples([EXAMPLE], chatty, RECIPE)
    assert (
        chat[SampleIndex(0)].example[1]
        == encode_target("Ann", chatty, chat=True)
        != text[SampleIndex(0)].example[1]
    )


def test_check_finds_a_question_that_only_chat_makes_too_long(chatty: PreTrainedTokenizerFast) -> None:
    need = (
        len(encode(RagPrompt(question="Who is it?", passages=[]), chatty).ids)
        + 4
        + len(encode_target("Ann", chatty))
    )
    recipe = replace(RECIPE, max_length=need)
    RagExamples([EXAMPLE], chatty, recipe).check()
    with pytest.raises(DataError, match="Who is it"):
        RagExamples([EXAMPLE], chatty, replace(recipe, chat=0.5)).check()
    with pytest.raises(DataError, match="Who is it"):
        RagExamples([EXAMPLE], chatty, replace(recipe, max_length=need - 1)).check()


def test_questions_about_the_same_passages_share_a_context_and_a_step(
    chatty: PreTrainedTokenizerFast,
) -> None:
    texts = [tuple(f"{letter} {number} {'x' * (number % 5)}" for letter in LETTERS) for number in range(40)]
    examples = [RagExample(f"Who is {asked}?", ("Ann",), texts[i % 40]) for i, asked in enumerate(range(160))]
    data = RagExamples(examples, chatty, RECIPE)
    steps: list[set[int]] = [set() for _ in texts]
    for epoch in range(3):
        sampler = SimilarLengths(data, 20, seed=1)
        sampler.set_epoch(epoch)
        contexts: list[set[tuple[int, ...]]] = [set() for _ in texts]
        for place in sampler:
            contexts[place.index % 40].add(data[place].example[0].context_ids)
            steps[place.index % 40].add(20 * epoch + place.step)
        assert all(len(drawn) == 1 for drawn in contexts)
    assert sum(map(len, steps)) < 1.5 * 3 * len(texts)


def test_order_is_a_permutation_with_similar_neighbours(chatty: PreTrainedTokenizerFast) -> None:
    data = RagExamples([EXAMPLE] * 203, chatty, RECIPE)
    sampler = SimilarLengths(data, 8, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        places = list(sampler)
        assert len(places) == len(sampler) == 208
        assert [place.step for place in places] == [i // 8 for i in range(208)]
        orders.append([place.index for place in places[:203]])
        assert sorted(orders[-1]) == list(range(203))
        # Every process has its part of the last step, too.
        assert [place.index for place in places[203:]] == orders[-1][:5]
        lengths = [data.length(i) for i in orders[-1]]
        spread = sum(max(part) - min(part) for part in (lengths[i : i + 8] for i in range(0, 200, 8)))
        assert spread < 0.2 * 25 * (max(lengths) - min(lengths))
    assert orders[0] == orders[2] != orders[1]
    assert data.epoch == 0


def test_a_target_follows_the_thoughts_that_its_prompt_opens() -> None:
    tokenizer = tokenizer_of("deepseek-r1")
    for template in (RagTemplate(), RagTemplate(thinking=None)):
        data = RagExamples(
            [EXAMPLE], tokenizer, replace(RECIPE, chat=1.0, template=template, max_length=4000)
        )
        encoded, target = data[SampleIndex(0)].example
        assert tokenizer.decode(encoded.ids).endswith("<think>\n")
        assert tokenizer.decode(target) == "\n</think>\n\nAnn</s>"
