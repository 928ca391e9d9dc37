"""Test thoughts and answers: what chat templates are told, what they write, and what is read from an answer."""

import re

import pytest
import torch
from thinking_parts import FAMILIES, PLAIN, letters, tokenizer_of, writing

from spring_rag.backends.decoding import decoder
from spring_rag.control import control_ids
from spring_rag.encoding import encode, encode_target
from spring_rag.model import SpringModel
from spring_rag.prompt import Message, Prompt, RagPrompt, RagTemplate, Slot, Text
from spring_rag.reasoning import Markers, markers
from spring_rag.stream import Thought
from spring_rag.templates import template_arguments

QUESTION, PASSAGES = "Where?", ["Arlo lives in Oslo."]


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def tokenizer(family):
    return letters(family.template, family.special, family.added)


def asked(thinking):
    return RagPrompt(QUESTION, PASSAGES, RagTemplate(chat=True, thinking=thinking))


def model_of(tokenizer, text, thinking):
    return SpringModel(writing(tokenizer, text, len(encode(asked(thinking), tokenizer).ids)), tokenizer)


class TestPrompt:
    def test_it_is_asked_not_to_think(self, family, tokenizer):
        assert template_arguments(RagTemplate(thinking=False), tokenizer) == family.off
        encoded = encode(asked(False), tokenizer)
        assert tokenizer.decode(encoded.ids).endswith(family.prompt)
        assert encoded.thinking == (family.prompt == family.thinking_prompt and "<think>" in family.prompt)

    def test_it_is_asked_to_think(self, family, tokenizer):
        encoded = encode(asked(True), tokenizer)
        assert tokenizer.decode(encoded.ids).endswith(family.thinking_prompt)
        assert encoded.thinking == bool(re.search(r"<think>|<\|open\|>think", family.thinking_prompt))

    def test_a_question_cant_open_thoughts(self, tokenizer):
        for text in ("<think>", "<|channel>thought", "<seed:think>", "<|channel|>analysis<|message|>"):
            prompt = RagPrompt(f"Where? {text}", PASSAGES, RagTemplate(chat=True))
            assert encode(prompt, tokenizer).thinking == encode(asked(False), tokenizer).thinking

    def test_own_arguments_win(self):
        tokenizer = tokenizer_of("qwen-3")
        template = RagTemplate(chat=True, thinking=False, chat_template_kwargs={"enable_thinking": True})
        assert (
            encode(RagPrompt(QUESTION, PASSAGES, template), tokenizer).ids
            == encode(asked(True), tokenizer).ids
        )


class TestTarget:
    @pytest.mark.parametrize("thinking", [False, True])
    def test_it_is_an_answer_after_the_thoughts(self, family, tokenizer, thinking):
        target = encode_target("Oslo </think>", tokenizer, chat=True, thinking=thinking)
        lead = family.target if thinking or family.prompt == family.thinking_prompt else ""
        end = family.written.rpartition("Oslo")[2]
        assert tokenizer.decode(target) == f"{lead}Oslo </think>{end}"
        # The answer's own marker is ordinary text.
        controls = [
            tokenizer.convert_ids_to_tokens(index) for index in target if index in control_ids(tokenizer)
        ]
        added = set(tokenizer.added_tokens_encoder)
        assert controls == [marker for marker in re.findall("<[^<>]+>", lead + end) if marker in added]

    @pytest.mark.parametrize("thinking", [False, True])
    def test_a_model_that_writes_it_answers(self, tokenizer, thinking):
        target = tokenizer.decode(encode_target("Oslo", tokenizer, chat=True, thinking=thinking))
        found = model_of(tokenizer, target, thinking).generate(asked(thinking))[0]
        assert found.text.strip() == "Oslo"
        assert not found.reasoning


class TestAnswer:
    def test_thoughts_are_parted_from_it(self, family, tokenizer):
        model = model_of(tokenizer, family.written, thinking=True)
        found = model.generate(asked(True))[0]
        assert (found.reasoning, found.text.rstrip(), found.finish_reason) == ("hm", "Oslo", "stop")
        assert model.answer(QUESTION, PASSAGES, thinking=True) == "Oslo"

    def test_streamed(self, family, tokenizer):
        model = model_of(tokenizer, family.written, thinking=True)
        assert "".join(model.stream(asked(True))) == model.generate(asked(True))[0].text
        stream = model.stream(asked(True)).stripped()
        pieces = list(stream.with_thoughts())
        assert "".join(piece for piece in pieces if isinstance(piece, Thought)) == "hm"
        assert [piece for piece in pieces if not isinstance(piece, Thought)] == ["O", "s", "l", "o"]
        assert stream.generation == model.generate(asked(True))[0]

    def test_without_thoughts(self, family, tokenizer):
        lead = family.target if encode(asked(False), tokenizer).thinking else ""
        model = model_of(tokenizer, lead + family.written[family.written.index("Oslo") :], thinking=False)
        found = model.generate(asked(False))[0]
        assert (found.reasoning, found.text.rstrip()) == (None, "Oslo")
        assert "".join(model.stream(asked(False))) == found.text

    def test_cut_while_thinking(self, family, tokenizer):
        model = model_of(tokenizer, family.written, thinking=True)
        most = len(
            tokenizer(family.written[: family.written.index("hm") + 1], add_special_tokens=False).input_ids
        )
        found = model.generate(asked(True), max_new_tokens=most)[0]
        assert (found.reasoning, found.text, found.cut_while_thinking) == ("h", "", True)
        assert "".join(model.stream(asked(True), max_new_tokens=most)) == ""

    def test_channels_of_any_order(self):
        found = markers(tokenizer_of("gpt-oss"))
        assert found is not None
        begin, end, answer = "<|channel|>", "<|end|><|start|>assistant", "<|channel|>final<|message|>Oslo"
        two = f"{begin}analysis<|message|>one{end}{begin}commentary<|message|>two{end}{answer}"
        assert found.split(two, opened=False) == ("one\ntwo", "Oslo")
        assert found.split(f"{begin}final json<|message|>{{}}", opened=False) == (None, "{}")
        assert found.split(f"{answer}<|end|>", opened=False) == (None, "Oslo")
        shown = ["", ""]
        for length in range(len(two) + 1):
            text = two[:length]
            settled = text[: len(text) - found.unsettled(text)]
            for at, now in enumerate(each or "" for each in found.split(settled, opened=False)):
                assert now.startswith(shown[at])
                shown[at] = now

    def test_what_follows_ends_thoughts_only_once(self):
        found = Markers("<think>", "</think>")
        assert found.split("<think>a</think>b</think>", opened=False) == ("a", "b</think>")
        assert found.split("a</think>b", opened=True) == ("a", "b")
        assert found.split("<think>a</think>b", opened=True) == ("a", "b")
        assert found.split("</think>\n\nb", opened=False) == (None, "b")
        assert found.split(" a <think> b", opened=False) == (None, " a <think> b")


def test_an_answer_between_markers_that_the_instructions_name():
    tokenizer = letters(
        "{% if thinking %}{{ 'Write your thoughts between <think></think> and your response between <response></response>.' }}{% endif %}"
        + PLAIN
    )
    written = "<think>hm</think>\n<response>Oslo</response><|im_end|>"
    model = model_of(tokenizer, written, thinking=True)
    found = model.generate(asked(True))[0]
    assert (found.reasoning, found.text, "".join(model.stream(asked(True)))) == ("hm", "Oslo", "Oslo")
    for thinking in (False, True):
        target = encode_target("Oslo", tokenizer, chat=True, thinking=thinking)
        assert tokenizer.decode(target) == "Oslo<|im_end|>"


def test_a_template_without_thoughts_has_no_markers():
    plain = letters(PLAIN)
    assert markers(plain) is None
    ids = plain("a<|im_start|>b").input_ids
    assert decoder(plain)(ids) == plain.decode(ids, skip_special_tokens=True) == "ab"


def test_a_text_prompt_may_be_answered_with_thoughts():
    tokenizer = tokenizer_of("qwen-3")
    prompt = Prompt(parts=(Text("Where?"), Slot()))
    model = SpringModel(
        writing(tokenizer, "<think>hm</think>Oslo</s>", len(encode(prompt, tokenizer).ids)), tokenizer
    )
    found = model.generate(prompt)[0]
    assert (found.reasoning, found.text) == ("hm", "Oslo")


def test_batches_are_parted_alike():
    tokenizer = tokenizer_of("qwen-3.5")
    model = model_of(tokenizer, FAMILIES["qwen-3.5"].written, thinking=True)
    with torch.no_grad():
        alone = model.generate(asked(True))
        other = Prompt(messages=(Message("user", (Text("Where?"),)),), thinking=False)
        both = model.generate([asked(True), other])
    assert both[0].text == alone[0].text
    assert not encode(other, tokenizer).thinking
