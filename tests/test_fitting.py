"""Test fitting: the lowest-ranked passages go first, and inference and training cut alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode
from spring_rag.errors import PromptTooLongError
from spring_rag.evaluation.ways import Way, layouts
from spring_rag.fitting import crossing, fit, fit_together, room
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.training import RagExamples, TrainingRecipe
from spring_rag.training.dataset import SampleIndex
from spring_rag.training.heldout import HeldOut


def _tokenizer(
    split: pre_tokenizers.PreTokenizer, vocabulary: dict[str, int] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer with an id for each piece that `split` gives."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **(vocabulary or {})}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>")


WORDS = _tokenizer(pre_tokenizers.WhitespaceSplit())


def words(prompt: RagPrompt) -> int:
    count = len(encode(prompt, WORDS).ids)
    assert count == len(prompt.to_prompt().text.split())
    return count


class TestFit:
    def test_what_fits_is_left_as_it_is(self):
        prompt = RagPrompt("q", ["a b", "c d"])
        assert fit(prompt, words(prompt), WORDS)[0] is prompt
        assert fit(prompt, None, WORDS) == (prompt, encode(prompt, WORDS))

    @settings(deadline=None)
    @given(st.lists(st.text(st.sampled_from("a "), max_size=20), max_size=8), st.integers(3, 30))
    def test_the_lowest_ranked_passages_go_and_no_more(self, passages, budget):
        prompt = RagPrompt("q", passages)
        fitted, encoded = fit(prompt, budget, WORDS)
        assert (*fitted.passages, *fitted.dropped) == prompt.passages
        assert words(fitted) <= budget
        assert encoded == encode(fitted, WORDS)
        if fitted.dropped:
            more = replace(prompt, passages=prompt.passages[: len(fitted.passages) + 1])
            assert words(more) > budget
        assert fitted.question == "q"

    def test_the_question_is_never_cut(self):
        with pytest.raises(PromptTooLongError, match="takes 3 tokens without any passage, 1 more than the 2"):
            fit(RagPrompt("q", ["a"]), 2, WORDS)

    def test_fitting_twice_keeps_what_was_dropped_first_at_the_end(self):
        once, _ = fit(RagPrompt("q", ["a", "b", "c"]), 7, WORDS)
        assert once.dropped == ("c",)
        assert fit(once, 5, WORDS)[0].dropped == ("b", "c")

    def test_an_order_of_its_own_changes_nothing_about_which_go(self):
        prompt = RagPrompt("q", ["a", "b", "c"])
        assert fit(prompt, 7, WORDS, [2, 1, 0])[0] == RagPrompt("q", ["b", "a"], dropped=("c",))
        assert fit(prompt, 9, WORDS, [2, 1, 0])[0] == RagPrompt("q", ["c", "b", "a"])


class TestCrossing:
    def test_lengths_whose_answer_would_grow_over_the_switch(self):
        for switch, count, new in ((64, 6, 8), (64, 1, 1), (10, 3, 40)):
            avoided = crossing(switch, [count], new)
            for length in range(1, 80):
                begins, ends = length + count, length + count + new - 1
                assert (length in avoided) == (begins <= switch < ends), (switch, count, new, length)

    def test_nothing_is_in_the_way_of_plain_answers_and_other_models(self):
        assert not crossing(64, [0], 8)
        assert not crossing(None, [6], 8)
        assert crossing(64, [0, 1, 6], 8) == range(52, 64)

    def test_passages_go_until_the_answer_has_room_before_the_switch(self):
        prompt = RagPrompt("q", ["a b", "c d", "e f", "g h"])
        lengths = [words(replace(prompt, passages=prompt.passages[:n])) for n in range(5)]
        fitted, encoded = fit(prompt, 100, WORDS, avoided=range(lengths[2] + 1, lengths[4] + 1))
        assert fitted.passages == ("a b", "c d")
        assert fitted.dropped == ("e f", "g h")
        assert encoded == encode(fitted, WORDS)
        # What is longer than all that is avoided stays as it is.
        assert fit(prompt, 100, WORDS, avoided=range(lengths[2], lengths[4]))[0] is prompt
        # One that is too long for the context may be cut into what is avoided, and is cut once more.
        assert fit(prompt, lengths[3], WORDS, avoided=range(lengths[1] + 1, lengths[3] + 1))[0].passages == (
            "a b",
        )
        with pytest.raises(PromptTooLongError, match="takes 3 tokens without any passage, 1 more than the 2"):
            fit(prompt, 100, WORDS, avoided=range(3, 100))


def test_room():
    assert room(100, 6, 20) == 74
    assert room(None, 6, 20) is None


def test_layouts_of_one_question_show_the_same_passages_and_say_which_were_dropped():
    prompts = [RagPrompt("q", ["a", "b", "c"], RagTemplate(instruction=each)) for each in ("", "be brief ")]
    for fitted, _ in fit_together(prompts, 7, WORDS):
        assert (fitted.passages, fitted.dropped) == (("a",), ("b", "c"))


def test_layouts_that_are_cut_together_keep_away_from_lengths_to_avoid():
    prompts = [
        RagPrompt("q", ["a", "b", "c"], RagTemplate(instruction=each)) for each in ("", "so be brief ")
    ]
    lengths = [
        [len(encode(replace(each, passages=each.passages[:n]), WORDS).ids) for n in range(4)]
        for each in prompts
    ]
    for start in range(lengths[0][0] + 1, lengths[1][3] + 1):
        for end in range(start + 1, lengths[1][3] + 3):
            if lengths[1][0] in range(start, end) or lengths[0][0] in range(start, end):
                continue
            for fitted, encoded in fit_together(prompts, 100, WORDS, avoided=range(start, end)):
                assert len(encoded.ids) not in range(start, end)
                assert (*fitted.passages, *fitted.dropped) == ("a", "b", "c")


def test_ways_name_all_the_passages_that_they_leave_out(llama, tokenizer):
    model = SpringModel(llama, tokenizer)
    passages = tuple(f"Passage {i} says that the lighthouse was built." for i in range(20))
    ways = [Way(RagTemplate()), Way(RagTemplate(instruction="Answer with a few words only, please.\n" * 3))]
    found = layouts(model, RagExample("Who?", ("Ann",), passages), ways, 20)
    short, long = (found[way.template] for way in ways)
    assert 0 < len(long.passages) < len(fit(replace(short, passages=passages), 236, tokenizer)[0].passages)
    for prompt in (short, long):
        assert (*prompt.passages, *prompt.dropped) == passages


def test_training_drops_the_lowest_ranked_also_where_the_order_makes_a_prompt_longer():
    tokens = ["1a", *"abcdefghijklmnopqrstuvwxyzABQWZ0123456789 :?\n[]"]
    split = pre_tokenizers.Split(Regex(r"1a|.|\n"), "isolated")
    tokenizer = _tokenizer(split, {token: number for number, token in enumerate(tokens, 1)})
    template = RagTemplate(passage="{number}{passage}\n")
    example = RagExample("Q", ("z",), ("a", "b"))
    recipe = TrainingRecipe(num_tokens=1, min_passages=2, max_passages=2, template=template)
    whole = len(encode(RagPrompt("Q", example.passages, template), tokenizer).ids)
    target = len(RagExamples([example], tokenizer, recipe)[SampleIndex(0)].example[1])
    data = RagExamples([example], tokenizer, replace(recipe, max_length=whole + 1 + target))
    seen = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        item = data[SampleIndex(0)]
        letters = "".join(tokens[i - 1][-1] for i in item.example[0].context_ids).split("\n")
        seen.add((tuple(filter(None, letters)), item.dropped))
    assert seen == {(("a", "2b"), 0), (("a",), 1)}


def test_held_out_answers_go_by_the_passages_that_the_backbone_reads(llama, tokenizer):
    passages = ("Nothing is said here of it. " * 5, "It was Ada. " * 15)
    example = RagExample("Who?", ("Ada",), passages)
    recipe = TrainingRecipe(num_tokens=4, max_length=250, max_passages=2, unanswerable=0.1)
    held_out = HeldOut(llama, tokenizer, [example], recipe)
    assert held_out._prompts[0].passages == passages[:1]
    assert held_out._accepted == [("not stated",)]
