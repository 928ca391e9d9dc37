"""Test that the slot is invisible to the tokenizer and that text can't forge control tokens, for tokenizers of every kind."""

from __future__ import annotations

import copy
import json
import os
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from spring_rag.control import control_ids
from spring_rag.encoding import Encoded, encode, encode_target, warn_of_control_strings
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, Message, Prompt, RagPrompt, RagTemplate, Slot, Text

CORPUS = [
    "The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons.",
    "Question: who built the lighthouse?\nAnswer: Hale and Sons, in 1887.",
    "[1] A passage about ships.\n[2] Another passage, of mountains and law books </s> ref s.\n\n",
    "Der Fluß fließt nach Süden; le café est fermé. 東京は大きい。 Привет, мир!",
] * 4
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
ADDED = [
    AddedToken("<ref>", normalized=True),
    AddedToken("<|ctx|>", lstrip=True, rstrip=True, special=True),
    AddedToken("endofpage", single_word=True, normalized=True),
    AddedToken("   ", normalized=False),
]


def wrap(
    tokenizer: Tokenizer, *, bos: bool = True, eos: bool = False, added: bool = True
) -> PreTrainedTokenizerFast:
    if bos:
        template = "<s> $A </s>" if eos else "<s> $A"
        tokens = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        single = processors.TemplateProcessing(single=template, special_tokens=tokens)
        already = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([already, single]) if already else single
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    if added:
        wrapped.add_tokens(ADDED)
    return wrapped


def train(tokenizer: Tokenizer, trainer: type, **kwargs: object) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer(special_tokens=SPECIALS, show_progress=False, **kwargs))
    return tokenizer


def byte_level(
    *, trim: bool, add_prefix_space: bool = False, use_regex: bool = True
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    train(
        tokenizer, trainers.BpeTrainer, vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return wrap(tokenizer)


def listed_merges() -> PreTrainedTokenizerFast:
    """Byte-level BPE that looks whole words up first (as Llama-3's), with control strings in its vocabulary, and merges to one."""
    state = json.loads(byte_level(trim=False).backend_tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    vocabulary = state["model"]["vocab"]
    state["model"]["merges"] += [["<", "/"], ["</", "s"], ["</s", ">"]]
    vocabulary.update(
        {entry: len(vocabulary) + i for i, entry in enumerate(["</", "</s"]) if entry not in vocabulary}
    )
    state["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(SPECIALS)]
    return wrap(Tokenizer.from_str(json.dumps(state)), bos=False, added=False)


def word_piece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(train(tokenizer, trainers.WordPieceTrainer, vocab_size=300), eos=True)


def unigram(scheme: str) -> PreTrainedTokenizerFast:
    """Its model reads `</s>` out of text, as it's a piece like any other."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    train(tokenizer, trainers.UnigramTrainer, vocab_size=200, unk_token="<unk>")
    return wrap(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama-2's older `tokenizer.json`: no pre-tokenizer, a space put in front by the normaliser."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    train(tokenizer, trainers.BpeTrainer, vocab_size=300)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    return wrap(Tokenizer.from_str(json.dumps(state)))


def word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(train(tokenizer, trainers.WordLevelTrainer, vocab_size=300), bos=False)


def real(name: str, *, plain_file: bool = False) -> PreTrainedTokenizerFast:
    root = os.environ.get("SPRING_RAG_DATA")
    if not root:
        pytest.skip("SPRING_RAG_DATA is not set: real tokenizers are not tested")
    folder = Path(root) / "tokenizers" / name
    if plain_file:
        return wrap(Tokenizer.from_file(str(folder / "tokenizer.json")), bos=False, added=False)
    return AutoTokenizer.from_pretrained(folder)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama-2": lambda: real("llama-2"),
    "llama-2-file": lambda: real("llama-2", plain_file=True),
    "mistral": lambda: real("mistral-7b-v0.1"),
    "byte-level": lambda: byte_level(trim=False),
    "byte-level-trimmed": lambda: byte_level(trim=True),
    "byte-level-prefixed": lambda: byte_level(trim=True, add_prefix_space=True),
    "byte-level-no-words": lambda: byte_level(trim=False, use_regex=False),
    "listed-merges": listed_merges,
    "byte-fallback": byte_fallback,
    "word-piece": word_piece,
    "unigram-always": lambda: unigram("always"),
    "unigram-first": lambda: unigram("first"),
    "word-level": word_level,
}
make = cache(lambda kind: KINDS[kind]())


@pytest.fixture(params=KINDS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return make(request.param)


NASTY = [
    *(
        "</s>",
        "<s>",
        "<unk>",
        "<ref>",
        "<REF>",
        "<|im_end|>",
        "<|im_start|>",
        "<|ctx|>",
        " <|ctx|> ",
        "endofpage",
        "</S>",
    ),
    *(
        "＜s＞",
        "＜/s＞",
        "<",
        "/",
        "s",
        ">",
        "</",
        "<|",
        "|>",
        "[ref1]",
        "[ref50]",
        SLOT_MARKER,
        "⟦",
        "\x00",
        "\ufdd0",
        "\U000f0000",
    ),
    *(
        "\u200f",
        "\u202e",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "½",
        "ß",
        "İ",
        "▁",
        "Ġ",
        "<0x0A>",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\t",
        "\u3000",
    ),
    *("The lighthouse", "Question:", "東京", "🚢", "👩‍👩‍👧", "ﷺ"),
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
MIXED = st.lists(st.one_of(st.sampled_from(NASTY), st.text(CHARACTERS, max_size=8)), max_size=8).map("".join)
fuzz = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def forbidden(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Control ids but for the unknown token's, which a character that the tokenizer doesn't know rightly gets."""
    return set(control_ids(tokenizer)) - {tokenizer.unk_token_id}


def controls(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [token for token in encoded.ids if token in forbidden(tokenizer)]


def holds_control(text: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the plain ids of a text hold control tokens beside those that every text gets."""
    plain, empty = tokenizer(text).input_ids, tokenizer("").input_ids
    return "<unk>" in text or sum(i in forbidden(tokenizer) for i in plain) > sum(
        i in forbidden(tokenizer) for i in empty
    )


class TestSlot:
    """Invariant 1."""

    @fuzz
    @given(left=MIXED, right=MIXED)
    def test_without_control_strings_the_ids_are_the_plain_ones(self, tokenizer, left, right):
        if holds_control(left + right, tokenizer):
            return
        encoded = encode(Prompt((Text(left), Slot(), Text(right))), tokenizer)
        assert list(encoded.ids) == tokenizer(left + right).input_ids
        assert encoded.context_ids + encoded.suffix_ids == encoded.ids
        assert encode(left + right, tokenizer) == Encoded(encoded.ids, None)

    @fuzz
    @given(left=MIXED, right=MIXED)
    def test_the_slot_stands_where_the_text_parts(self, tokenizer, left, right):
        prompt = Prompt((Text(left, trusted=True), Slot(), Text(right, trusted=True)))
        encoded = encode(prompt, tokenizer)
        plain = tokenizer(left + right, return_offsets_mapping=True)
        assert list(encoded.ids) == plain.input_ids
        trimmed = "trim_offsets=True" in str(tokenizer.backend_tokenizer.post_processor)
        sequence = plain.sequence_ids(0)
        for index, (start, end) in enumerate(plain.offset_mapping):
            if sequence[index] is None:
                continue
            if index < encoded.slot:
                assert end <= len(left)
            elif not trimmed:
                assert end > len(left) or start == end or index > encoded.slot

    @fuzz
    @given(left=MIXED, right=MIXED)
    @pytest.mark.parametrize("kind", ["byte-level", "byte-level-trimmed", "byte-level-no-words"])
    def test_only_a_straddling_token_moves_it_and_only_to_its_start(self, kind, left, right):
        tokenizer = make(kind)
        encoded = encode(Prompt((Text(left), Slot(), Text(right))), tokenizer)
        alphabet = byte_alphabet()
        names = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}

        def size(ids: tuple[int, ...]) -> int:
            tokens = tokenizer.convert_ids_to_tokens(list(ids))
            return sum(
                len(names[i].encode()) if i in names else sum(c in alphabet for c in token)
                for i, token in zip(ids, tokens, strict=True)
            )

        before = size(encoded.context_ids[1:])
        assert before <= len(left.encode())
        if encoded.suffix_ids:
            assert (
                before + size(encoded.suffix_ids[:1]) > len(left.encode()) - 3
            )  # a token may end within a character
        else:
            assert before == len(left.encode())

    def test_default_layout_with_real_tokenizers(self):
        for kind in ("llama-2", "mistral"):
            tokenizer = make(kind)
            encoded = encode(RagPrompt("who?", ["Hale"]), tokenizer)
            assert tokenizer.convert_ids_to_tokens(encoded.context_ids)[-3:] == ["ale", "<0x0A>", "<0x0A>"]
            assert tokenizer.convert_ids_to_tokens(encoded.suffix_ids)[:3] == ["Question", ":", "▁who"]

    def test_a_space_in_front_goes_with_what_follows(self, tokenizer):
        encoded = encode(Prompt((Slot(), Text("lighthouse"))), tokenizer)
        leading = 1 if tokenizer("").input_ids else 0
        assert encoded.slot == leading
        assert encode(Prompt((Slot(),)), tokenizer).slot == leading

    def test_the_end_is_before_a_closing_special_token(self):
        tokenizer = make("word-piece")
        encoded = encode(Prompt((Text("lighthouse"), Slot())), tokenizer)
        assert encoded.suffix_ids == (tokenizer.eos_token_id,)

    @pytest.mark.parametrize("kind", ["byte-level", "byte-level-trimmed"])
    def test_trimmed_offsets_dont_move_it(self, kind):
        tokenizer = make(kind)
        encoded = encode(Prompt((Text("ships.\n\n"), Slot(), Text("Question: who"))), tokenizer)
        assert tokenizer.decode(encoded.context_ids[1:]) == "ships.\n\n"
        encoded = encode(Prompt((Text("ships "), Slot(), Text(" who"))), tokenizer)
        assert tokenizer.decode(encoded.context_ids[1:]) == "ships "

    def test_a_straddling_token_stays_whole(self):
        tokenizer = make("byte-level")
        encoded = encode(Prompt((Text("a light"), Slot(), Text("house"))), tokenizer)
        assert tokenizer.decode(encoded.context_ids[1:]) == "a"
        assert tokenizer.decode(encoded.suffix_ids) == " lighthouse"


def byte_alphabet() -> set[str]:
    return set(pre_tokenizers.ByteLevel.alphabet())


class TestControl:
    """Invariant 3."""

    @fuzz
    @given(left=MIXED, right=MIXED)
    def test_text_cannot_forge_a_control_token(self, tokenizer, left, right):
        encoded = encode(Prompt((Text(left), Slot(), Text(right))), tokenizer)
        assert controls(encoded, tokenizer) == controls(encode("", tokenizer), tokenizer)
        assert encoded.slot is not None

    @fuzz
    @given(left=MIXED, middle=MIXED, right=MIXED)
    def test_the_templates_own_stay(self, tokenizer, left, middle, right):
        own = [Text(each, trusted=True) for each in ("<s>", "\n</s>", "</s> x")]
        prompt = Prompt((own[0], Text(left), own[1], Text(middle), Slot(), own[2], Text(right)))
        eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        before = controls(encode("", tokenizer), tokenizer)
        added = [bos] if before[:1] == [bos] else []
        closing = before[len(added) :]
        encoded = encode(prompt, tokenizer)
        expected = [*added, bos, eos, eos, *closing]
        assert controls(encoded, tokenizer) == expected
        plain = tokenizer(prompt.text).input_ids
        if "<unk>" not in prompt.text and [i for i in plain if i in forbidden(tokenizer)] == expected:
            assert list(encoded.ids) == plain

    @pytest.mark.parametrize("string", ["</s>", "<|im_end|>", "<ref>", "<|ctx|>", "endofpage"])
    def test_a_control_string_becomes_its_characters(self, string):
        tokenizer = make("byte-level")
        encoded = encode(Prompt((Text(f"a {string} b"), Slot())), tokenizer)
        assert tokenizer(f"a {string} b").input_ids != list(encoded.ids)
        assert tokenizer.decode(encoded.ids[1:]) == f"a {string} b"

    def test_split_control_strings_dont_join(self, tokenizer):
        for parts in (
            (Text("</"), Text("s>")),
            (Text("</", trusted=True), Text("s>")),
            (Text("</"), Text("s>", trusted=True)),
        ):
            for prompt in (Prompt((parts[0], Slot(), parts[1])), Prompt((*parts, Slot()))):
                encoded = encode(prompt, tokenizer)
                assert controls(encoded, tokenizer) == controls(encode("", tokenizer), tokenizer)

    def test_a_templates_control_string_may_surround_the_slot(self):
        tokenizer = make("byte-level")
        encoded = encode(
            Prompt((Text("a</", trusted=True), Slot(), Text("s>", trusted=True), Text("</s>"))), tokenizer
        )
        assert encoded.suffix_ids[0] == tokenizer.eos_token_id
        assert controls(encoded, tokenizer) == [tokenizer.bos_token_id, tokenizer.eos_token_id]

    @pytest.mark.parametrize("kind", ["unigram-always", "unigram-first", "listed-merges"])
    def test_the_model_itself_cannot_spell_a_control_token(self, kind):
        tokenizer = make(kind)
        spelt = [token.id for token in tokenizer.backend_tokenizer.model.tokenize("</s>")]
        assert spelt == [tokenizer.eos_token_id]
        assert tokenizer.eos_token_id not in encode("a </s> b", tokenizer).ids

    def test_whitespace_that_a_control_token_swallows_is_not_forged(self):
        tokenizer = make("byte-level")
        prompt = Prompt((Text("a <|ctx|>", trusted=True), Text(" \n b"), Slot()))
        assert list(encode(prompt, tokenizer).ids) == tokenizer(prompt.text).input_ids

    def test_unknown_characters_stay_unknown(self):
        tokenizer = make("word-piece")
        text = "the ☃ lighthouse"
        assert list(encode(text, tokenizer).ids) == tokenizer(text).input_ids
        assert tokenizer.unk_token_id in encode(text, tokenizer).ids
        assert tokenizer.unk_token_id not in encode("the <unk> s", make("llama-2")).ids

    def test_the_unknown_tokens_own_string_may_be_unknown(self):
        tokenizer = make("word-level")
        assert encode("the <unk> ships", tokenizer).ids[1] == tokenizer.unk_token_id

    def test_control_ids_are_all_but_whitespace(self, tokenizer):
        expected = set(tokenizer.added_tokens_encoder.values()) | set(tokenizer.all_special_ids)
        expected -= {i for content, i in tokenizer.added_tokens_encoder.items() if not content.strip()}
        assert control_ids(tokenizer) == expected

    def test_tokens_added_later_count(self):
        tokenizer = byte_level(trim=False)
        before = encode("a <later> b", tokenizer)
        tokenizer.add_tokens(["<later>"], special_tokens=True)
        assert encode("a <later> b", tokenizer) == before
        assert encode(Prompt((Text("<later>", trusted=True),)), tokenizer).ids[-1] == len(tokenizer) - 1

    def test_half_a_character_is_refused(self, tokenizer):
        with pytest.raises(PromptError, match="lone surrogate"):
            encode("a\ud800", tokenizer)

    def test_slow_tokenizers_are_refused(self):
        class Slow(PreTrainedTokenizer):
            vocab_size = 1

            def get_vocab(self):
                return {"a": 0}

            def _tokenize(self, text, **kwargs):
                return list(text)

            def _convert_token_to_id(self, token):
                return 0

        with pytest.raises(PromptError, match="slow tokenizer"):
            encode("a", Slow())


class TestState:
    """Invariant 2, the tokenizer's part."""

    def test_the_tokenizer_is_unchanged(self, tokenizer):
        backend = tokenizer.backend_tokenizer
        own = Prompt((Text("<s>", trusted=True), Text("</s>")))
        prompts = ["the lighthouse at Grey Point", "a </s> b <|im_end|>", own]
        plain = [encode(prompt, tokenizer) for prompt in prompts]
        backend.enable_truncation(max_length=3)
        backend.enable_padding(length=7)
        try:
            state = backend.to_str(), backend.encode_special_tokens, len(tokenizer)
            assert [encode(prompt, tokenizer) for prompt in prompts] == plain
            assert (backend.to_str(), backend.encode_special_tokens, len(tokenizer)) == state
        finally:
            backend.no_truncation()
            backend.no_padding()

    def test_threads_may_share_it(self, tokenizer):
        prompts = [
            RagPrompt(f"who {i} </s>?" if i % 3 else f"who {i}?", [f"passage {i}"] * 5) for i in range(64)
        ]
        alone = [encode(prompt, tokenizer) for prompt in prompts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda prompt: encode(prompt, tokenizer), prompts)) == alone

    def test_it_is_fast(self):
        tokenizer = byte_level(trim=False)
        prompt = RagPrompt("who?", ["The lighthouse at Grey Point was built in 1887. " * 40] * 5)
        text = prompt.to_prompt().text
        thousands = len(encode(prompt, tokenizer).ids) / 1000

        def fastest(call: Callable[[], object]) -> float:
            times = []
            for _ in range(20):
                start = time.process_time()
                call()
                times.append(time.process_time() - start)
            return min(times)

        overhead = fastest(lambda: encode(prompt, tokenizer)) - fastest(lambda: tokenizer(text))
        assert overhead < 0.001 * thousands


CHAT_TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen-like-default-system": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}",
    "phi-3": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|ctx|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "llama-3": "{% for m in messages %}{% set content = '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    "qwen-3": "{% set ns = namespace(last=messages|length - 1) %}{% for m in messages[::-1] %}"
    "{% if m.role == 'user' and m.content is string and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = messages|length - 1 - loop.index0 %}{% break %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content if m.content is string else '' %}{% if m.role == 'assistant' %}"
    "{% set reasoning = '' %}{% if '</think>' in content %}{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<|im_start|>assistant\n<think>\n' + reasoning + '\n</think>\n\n' + content }}{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "only-lists": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "repeating": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "Again: {{ messages[-1].content }}\n<|im_start|>assistant\n",
}
REFUSE_SYSTEM = {"mistral", "gemma"}


@cache
def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(trim=False)
    tokenizer.add_tokens(["<think>", "</think>", "<|user|>", "<|system|>", "<|assistant|>"])
    tokenizer.chat_template = CHAT_TEMPLATES[name]
    return tokenizer


def own_controls(tokenizer: PreTrainedTokenizerFast, roles: list[str]) -> list[int]:
    """The control tokens that the chat template writes around contents that hold none."""
    chat = [{"role": role, "content": wrap_content(tokenizer, "lighthouse")} for role in roles]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return [i for i in ids if i in forbidden(tokenizer)]


def wrap_content(tokenizer: PreTrainedTokenizerFast, text: str) -> object:
    return (
        [{"type": "text", "text": text}] if tokenizer.chat_template == CHAT_TEMPLATES["only-lists"] else text
    )


@pytest.fixture(params=CHAT_TEMPLATES)
def chat(request) -> PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer(request.param)
    tokenizer.name_or_path = request.param
    return tokenizer


class TestChat:
    @fuzz
    @given(context=MIXED, question=MIXED)
    def test_one_message(self, chat, context, question):
        prompt = Prompt(messages=(Message("user", (Text(f"C{context}."), Slot(), Text(f"Q{question}?"))),))
        encoded = encode(prompt, chat)
        assert controls(encoded, chat) == own_controls(chat, ["user"])
        content = wrap_content(chat, prompt.text)
        rendered = chat.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        if not holds_control(prompt.text, chat) and "<|ctx|>" not in prompt.text:
            assert list(encoded.ids) == chat(rendered, add_special_tokens=False).input_ids
        ending = rendered[rendered.rindex(f"Q{question}?") :]
        if chat.name_or_path == "phi-3":
            ending = re.sub(r"\s*<\|ctx\|>\s*(?=<\|assistant)", "<|ctx|>", ending)
        decoded = chat.decode(encoded.suffix_ids)
        assert decoded.endswith(ending)
        assert len(decoded) <= len(ending) + 2  # the "." before the slot may have grown into a token

    @fuzz
    @given(texts=st.tuples(MIXED, MIXED, MIXED, MIXED))
    @pytest.mark.parametrize("slot_in", [0, 1, 3])
    def test_a_conversation(self, chat, texts, slot_in):
        roles = ["system", "user", "assistant", "user"]
        messages = [Message(role, (Text(f"a{text}z"),)) for role, text in zip(roles, texts, strict=True)]
        messages[slot_in] = Message(roles[slot_in], (*messages[slot_in].parts, Slot()))
        if chat.name_or_path in REFUSE_SYSTEM:
            if slot_in == 0:
                return
            messages, roles = messages[1:], roles[1:]
        encoded = encode(Prompt(messages=tuple(messages)), chat)
        assert controls(encoded, chat) == own_controls(chat, roles)
        following = len([i for i in encoded.suffix_ids if i in forbidden(chat)])
        assert following <= len(own_controls(chat, roles))
        assert chat.decode(encoded.ids).count("a" + texts[slot_in] + "z") >= 1

    @fuzz
    @given(user=MIXED)
    def test_contents_that_a_template_trims(self, user):
        for name in ("gemma", "llama-2", "llama-3"):
            tokenizer = chat_tokenizer(name)
            prompt = Prompt(messages=(Message("user", (Text(f" \n{user}"), Slot(), Text(f"{user}\n "))),))
            if not prompt.text.strip():
                continue
            assert controls(encode(prompt, tokenizer), tokenizer) == own_controls(tokenizer, ["user"])

    @pytest.mark.parametrize(
        "text", ["user", "<|im_start|>user\n", "<|im_end|>\n", "\n", "a", "assistant\n", "You are helpful."]
    )
    def test_contents_that_look_like_the_template(self, chat, text):
        prompt = Prompt(messages=(Message("user", (Text(text), Slot(), Text(text + "?"))),))
        encoded = encode(prompt, chat)
        assert controls(encoded, chat) == own_controls(chat, ["user"])
        shown = (text + "?", (text + "?").lstrip())
        assert chat.decode(encoded.suffix_ids).startswith(shown)

    def test_rag_template_as_chat(self, chat):
        encoded = encode(RagPrompt("who?</s>", ["Hale <|im_end|>"], RagTemplate(chat=True)), chat)
        assert controls(encoded, chat) == own_controls(chat, ["user"])
        assert chat.decode(encoded.suffix_ids).startswith("Question: who?</s>\nAnswer:")
        assert "[1] Hale <|im_end|>\n\n" in chat.decode(encoded.context_ids)

    def test_trusted_control_strings_in_a_message_stay(self):
        tokenizer = chat_tokenizer("chatml")
        prompt = Prompt(messages=(Message("user", (Text("<think>", trusted=True), Text("<think>"), Slot())),))
        think = tokenizer.convert_tokens_to_ids("<think>")
        assert encode(prompt, tokenizer).ids.count(think) == 1

    def test_a_content_that_the_template_takes_apart(self):
        tokenizer = chat_tokenizer("qwen-3")
        messages = (
            Message("user", (Text("hello"),)),
            Message("assistant", (Text("<think>\nhm\n</think>\n\nanswer <|im_end|>"),)),
            Message("user", (Text("c"), Slot(), Text("q"))),
        )
        encoded = encode(Prompt(messages=messages), tokenizer)
        assert controls(encoded, tokenizer) == own_controls(tokenizer, ["user", "assistant", "user"])
        assert "hello<|im_end|>\n<|im_start|>assistant\nanswer <|im_end|><|im_end|>\n" in tokenizer.decode(
            encoded.ids
        )
        assert tokenizer.decode(encoded.suffix_ids) == "q<|im_end|>\n<|im_start|>assistant\n"
        split = Message("assistant", (Text("<think>\n</think>\n\nthe "), Slot(), Text("answer")))
        encoded = encode(Prompt(messages=(messages[0], split, Message("user", (Text("q"),)))), tokenizer)
        assert tokenizer.decode(encoded.suffix_ids).startswith(" answer<|im_end|>")

    def test_a_repeated_slot_stands_in_the_last_copy(self):
        tokenizer = chat_tokenizer("repeating")
        encoded = encode(Prompt(messages=(Message("user", (Text("c "), Slot(), Text("\nq"))),)), tokenizer)
        assert tokenizer.decode(encoded.suffix_ids) == "\nq\n<|im_start|>assistant"

    @pytest.mark.parametrize("name", sorted(REFUSE_SYSTEM))
    def test_a_refused_system_message_is_asked_by_the_user(self, name):
        tokenizer = chat_tokenizer(name)
        messages = (Message("system", (Text("s"),)), Message("user", (Text("c"), Slot(), Text("q"))))
        joined = Message("user", (Text("s\n\nc"), Slot(), Text("q")))
        assert encode(Prompt(messages=messages), tokenizer) == encode(Prompt(messages=(joined,)), tokenizer)

    @pytest.mark.parametrize(
        ("name", "roles", "reason"),
        [
            ("mistral", ["system", "user", "tool"], "Only user and assistant roles are supported!"),
            ("llama-2", ["assistant", "user", "user"], "Conversation roles must alternate"),
        ],
    )
    def test_a_template_that_refuses_a_chat_also_in_turns_says_so(self, name, roles, reason):
        messages = tuple(Message(role, (Text("a"),)) for role in roles)
        with pytest.raises(PromptError, match=f"refuses a chat with the roles {', '.join(roles)}: {reason}"):
            encode(Prompt(messages=messages), chat_tokenizer(name))

    def test_a_template_that_drops_the_slot_is_an_error(self):
        tokenizer = byte_level(trim=False)
        tokenizer.chat_template = (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}"
        )
        user, system = Message("user", (Text("q"),)), Message("system", (Text("c"), Slot()))
        assistant = Message("assistant", system.parts)
        with pytest.raises(PromptError, match="drops the 'assistant' message, which holds the slot"):
            encode(Prompt(messages=(user, assistant)), tokenizer)
        encoded = encode(Prompt(messages=(system, user)), tokenizer)
        assert tokenizer.decode(encoded.context_ids) == "c"
        assert tokenizer.decode(encoded.suffix_ids) == "\n\nq<|im_end|>"
        plain = Prompt(messages=(Message("system", (Text("c"),)), user))
        assert tokenizer.decode(encode(plain, tokenizer).ids) == "q<|im_end|>"

    def test_a_template_that_rewrites_contents_is_an_error(self):
        tokenizer = byte_level(trim=False)
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.content | upper }}<|im_end|>{{ m.content | length }}{% endfor %}"
        )
        with pytest.raises(PromptError, match="can't be followed"):
            encode(Prompt(messages=(Message("user", (Text("c"), Slot(), Text("q"))),)), tokenizer)

    @pytest.mark.parametrize(
        "template",
        [
            "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
            "{{ 1 / 0 }}",
            "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        ],
        ids=["loops", "divides", "recurs"],
    )
    def test_a_template_that_fails_is_an_error(self, tokenizer, monkeypatch, template):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        with pytest.raises(PromptError, match="chat template refuses"):
            encode(Prompt(messages=(Message("user", (Text("q"),)),)), tokenizer)

    def test_no_chat_template_is_an_error(self, tokenizer):
        with pytest.raises(PromptError, match="no chat template"):
            encode(Prompt(messages=(Message("user", (Text("q"),)),)), tokenizer)

    def test_without_slot_it_is_the_plain_chat(self, chat):
        encoded = encode(Prompt(messages=(Message("user", (Text("who?"),)),)), chat)
        content = wrap_content(chat, "who?")
        plain = chat.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        assert encoded == Encoded(tuple(plain), None)


class TestTarget:
    @fuzz
    @given(answer=MIXED)
    def test_no_control_token_but_the_last(self, tokenizer, answer):
        target = encode_target(answer, tokenizer)
        assert target[-1] == tokenizer.eos_token_id
        assert not forbidden(tokenizer) & set(target[:-1])

    @pytest.mark.parametrize("answer", ["Hale and Sons", "1887", "東京", "", " two spaces"])
    def test_it_is_the_texts_continuation(self, tokenizer, answer):
        text = encode("Question: who?\nAnswer:", tokenizer).ids
        whole = encode(f"Question: who?\nAnswer: {answer}", tokenizer).ids
        closing = len(tokenizer("").input_ids) - 1 if tokenizer("").input_ids else 0
        text, whole = text[: len(text) - closing], whole[: len(whole) - closing]
        target = encode_target(answer, tokenizer)[:-1]
        if whole[: len(text)] == text:
            assert target == whole[len(text) :]
        else:  # the colon and the answer's space are one token, which a prompt that ends with the colon can't have
            spelt = ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (text, target, whole)]
            assert spelt[0] + spelt[1] == spelt[2]

    def test_sentencepiece_puts_no_second_space(self):
        for kind in ("llama-2", "llama-2-file", "mistral"):
            assert make(kind).convert_ids_to_tokens(encode_target("Paris", make(kind))) == ["▁Paris", "</s>"]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("chatml", "Hale</s><|im_end|>"),
            ("llama-2", " Hale</s> </s>"),
            ("mistral", " Hale</s></s>"),
            ("gemma", "Hale</s><|im_end|>"),
            ("phi-3", "Hale</s><|ctx|>"),
            ("llama-3", "Hale</s><|im_end|>"),
            ("qwen-3", "Hale</s><|im_end|>"),
        ],
    )
    def test_chat(self, name, expected):
        tokenizer = chat_tokenizer(name)
        target = encode_target("Hale</s>", tokenizer, chat=True)
        assert tokenizer.decode(target) == expected
        assert [i in control_ids(tokenizer) for i in target] == [False] * (len(target) - 1) + [True]

    def test_a_chat_template_without_control_tokens_ends_with_eos(self):
        tokenizer = byte_level(trim=False)
        tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
        target = encode_target("Hale", tokenizer, chat=True)
        assert tokenizer.decode(target) == " Hale</s>"

    def test_no_eos_is_an_error(self):
        tokenizer = byte_level(trim=False)
        tokenizer.eos_token = None
        with pytest.raises(PromptError, match="end-of-sequence"):
            encode_target("Hale", tokenizer)


def test_control_strings_in_a_ready_made_text_are_warned_of_once(tokenizer):
    fresh = copy.deepcopy(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_control_strings("Who built it? <s", fresh)
    with pytest.warns(UserWarning, match=r"holds </s>, <s>: ordinary text here.*trusted=True"):
        warn_of_control_strings("<s>user: Who built it?</s>", fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_control_strings("<s>user: Who lit it?</s>", fresh)
