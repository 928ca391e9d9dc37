"""Test a GGUF on llama.cpp: the answers of `local` on the same weights, contexts that are kept, streams, threads, errors."""

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf_parts
import pytest
import torch
import toy_parts
from near_ties import gap
from skill_parts import skill_tokens

from spring_rag import Prompt, RagPrompt, SpringModel
from spring_rag.backbone import BackboneRecord
from spring_rag.encoding import Encoded
from spring_rag.errors import (
    BackboneMismatchError,
    BackendError,
    PromptError,
    PromptTooLongError,
    TokensError,
    UnsupportedBackboneError,
)
from spring_rag.prompt import Slot, Text
from spring_rag.tokens import VirtualTokens

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

PASSAGES = [
    ["The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons."],
    ["A passage about ships and their captains.", "Another passage, of mountains."],
    ["Der Fluß fließt nach Süden; le café est fermé."],
]
QUESTIONS = ["who built the lighthouse?", "what of the captains?", "wohin fließt er?", "and then?"]
PROMPTS: list[RagPrompt | Prompt | str] = [
    *(RagPrompt(question, PASSAGES[at % 3]) for at, question in enumerate(QUESTIONS)),
    "a text without a slot",
    Prompt(parts=(Slot(), Text("the slot comes first"))),
    Prompt(parts=(Text("the slot comes last"), Slot())),
]
KS = [6, 0, 3, 6, 0, 2, 4]


def test_a_process_may_end_in_the_middle_of_a_stream(toy_gguf):
    code = f"""
from spring_rag import SpringModel
stream = SpringModel.from_pretrained({str(toy_gguf)!r}, engine="llama.cpp", tokens=None).stream("the ship", max_new_tokens=400)
next(stream)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def answers(model, prompts=PROMPTS, **settings):
    settings = {"max_new_tokens": 12, "num_tokens": KS[: len(prompts)], **settings}
    return model.generate(prompts, **settings)


def one_by_one(model):
    """Each context is put aside for the next, and taken back when it is asked for again."""
    return [answers(model, [prompt], num_tokens=k)[0] for prompt, k in zip(PROMPTS, KS, strict=True)]


@pytest.fixture(scope="module")
def pair(make_pair, make_tokens):
    pair = make_pair("llama")
    for model in pair:
        model.add_tokens("default", make_tokens(6))
        model.add_tokens("other", make_tokens(4, seed=2))
    return pair


@pytest.fixture(scope="module")
def ours(pair):
    return pair[0]


@pytest.fixture
def read(ours, monkeypatch):
    """Counts the tokens that llama.cpp reads."""
    counts = []
    engine = ours.backend._writer._engine
    decode = engine.decode

    def counting(pieces, *rest):
        counts.append(sum(len(piece.tokens) for piece in pieces))
        return decode(pieces, *rest)

    monkeypatch.setattr(engine, "decode", counting)
    return counts


class TestFamilies:
    """Each loads, finds out how it expects virtual tokens, and answers as transformers does."""

    @pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
    def test_same_answers(self, family, make_pair, make_tokens):
        pair = make_pair(family)
        for model in pair:
            model.add_tokens("default", make_tokens(6))
        found, expected = map(answers, pair)
        assert found == expected
        assert len({each.token_ids for each in found}) > 4
        assert one_by_one(pair[0]) == found

    @pytest.mark.parametrize("family", ["gemma2", "gemma3"])
    def test_gemma(self, family, make_pair, make_tokens):
        """llama.cpp looks its activation function up in a table of 16 bits, so near-ties may go the other way."""
        ours, local = make_pair(family)
        for model in (ours, local):
            model.add_tokens("default", make_tokens(6))
        found, expected = answers(ours), answers(local)
        gaps = [
            gap(local, prompt, k, mine, theirs)
            for prompt, k, mine, theirs in zip(PROMPTS, KS, expected, found, strict=True)
            if mine.token_ids != theirs.token_ids
        ]
        assert all(0 <= each < 0.01 for each in gaps)
        assert len(gaps) < 3
        assert len({each.token_ids for each in found}) > 4
        assert one_by_one(ours) == found

    def test_gemma_takes_virtual_tokens_as_its_look_up_gives_them(self, make_pair):
        """What is trained stands in the space of the table, whatever the engine multiplies."""
        factors = {family: make_pair(family)[0].backend.embedding for family in ("gemma2", "gemma3")}
        assert {family: each.scale for family, each in factors.items()} == dict.fromkeys(factors, 32**0.5)
        assert [factors[family]._factor for family in ("gemma2", "gemma3")] == [1.0, 32**0.5]

    def test_one_that_reads_embeddings_otherwise_is_refused(self, make_pair, monkeypatch):
        from spring_rag.backends.llama_cpp import embedding

        monkeypatch.setattr(embedding, "_SCALED_AT_LOOKUP", frozenset())
        with pytest.raises(
            UnsupportedBackboneError, match="'gemma3' can't take virtual tokens: llama.cpp answers"
        ):
            make_pair("gemma3")

    @pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
    def test_fewer_bits(self, kind, make_pair, make_tokens):
        """Rounding differs then, so only first tokens are compared, and most of them agree."""
        pair = make_pair("llama", kind)
        for model in pair:
            model.add_tokens("default", make_tokens(6))
        found, expected = ([each.token_ids[0] for each in answers(model)] for model in pair)
        assert sum(map(int.__eq__, found, expected)) >= len(found) - 1
        assert pair[0].backend.bank._quantization == (None if kind == "F16" else kind)


class TestAnswers:
    def test_one_by_one_and_together(self, ours):
        assert one_by_one(ours) == answers(ours)

    def test_sets_are_mixed(self, pair):
        chosen = {"tokens": [None, "other", "other", None], "num_tokens": [None, 4, 2, 1]}
        found, expected = (answers(model, PROMPTS[:4], **chosen) for model in pair)
        assert found == expected
        assert [each.usage.virtual for each in found] == [6, 4, 2, 1]

    def test_more_prompts_than_run_side_by_side(self, pair):
        prompts = [RagPrompt(f"{number}?", PASSAGES[number % 3]) for number in range(40)]
        found, expected = (answers(model, prompts, num_tokens=5, max_new_tokens=4) for model in pair)
        assert found == expected

    def test_sampling_draws_what_local_draws(self, pair):
        settings = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 3}
        found, expected = (answers(model, **settings) for model in pair)
        assert found == expected
        assert found != answers(pair[0])
        assert found != answers(pair[0], **{**settings, "seed": 4})

    def test_a_stop_string_ends_an_answer(self, pair):
        whole = answers(pair[0])[0].text
        stop = whole[3:5]
        found, expected = (answers(model, stop=stop) for model in pair)
        assert found == expected
        assert found[0].text == whole[: whole.index(stop)]
        assert found[0].finish_reason == "stop"

    def test_end_of_sequence_ends_an_answer(self, ours):
        whole = answers(ours)[0].token_ids
        writer = ours.backend._writer
        ends = writer._eos_ids
        assert ends == {2}
        writer._eos_ids = frozenset({whole[2]})
        try:
            cut = answers(ours)[0]
        finally:
            writer._eos_ids = ends
        assert cut.token_ids == whole[: whole.index(whole[2]) + 1]
        assert cut.finish_reason == "stop"


class TestKeptContexts:
    def test_the_second_question_reads_no_context(self, ours, read):
        text = " ".join(f"word{number}" for number in range(20))
        first, second = (RagPrompt(question, [text]) for question in ("who?", "and where, then?"))
        before = answers(ours, [first], num_tokens=6, max_new_tokens=1)
        usage = before[0].usage
        assert sum(read) == usage.context + usage.virtual + usage.suffix
        read.clear()
        for prompt, options in ((second, {}), (first, {"num_tokens": 2}), (first, {"tokens": "other"})):
            usage = ours.generate(prompt, max_new_tokens=1, **options)[0].usage
            assert sum(read) == usage.virtual + usage.suffix
            read.clear()
        assert answers(ours, [first], num_tokens=6, max_new_tokens=1) == before

    def test_answers_side_by_side_share_it(self, ours, read):
        prompts = [RagPrompt(question, ["a context that is computed once for all"]) for question in QUESTIONS]
        found = answers(ours, prompts, num_tokens=6, max_new_tokens=1)
        assert sum(read) == found[0].usage.context + sum(
            each.usage.virtual + each.usage.suffix for each in found
        )

    def test_one_that_others_displaced_is_taken_back_as_it_was(self, ours, read):
        first, second = (RagPrompt("who?", [text]) for text in ("the first that was read", "another one"))
        before = answers(ours, [first], num_tokens=6, max_new_tokens=1)
        answers(ours, [second], num_tokens=6, max_new_tokens=1)
        read.clear()
        assert answers(ours, [first], num_tokens=6, max_new_tokens=1) == before
        assert sum(read) == before[0].usage.virtual + before[0].usage.suffix

    def test_the_cache_holds_what_is_gone_on_from_and_nothing_else(self, ours):
        """llama.cpp walks over all cells up to the last one in use, for every token: with others in it answers would be slower."""
        import llama_cpp

        for number in range(3):
            answers(ours, [RagPrompt("who?", [f"a context with the number {number}"])], num_tokens=2)
        memory = ours.backend._writer._engine._memory
        held = [llama_cpp.llama_memory_seq_pos_max(memory, sequence) for sequence in range(32)]
        assert len([last for last in held if last >= 0]) == 1
        assert len(ours.backend.kept_contexts) >= 3

    def test_a_small_cache(self, make_pair, make_tokens):
        """Answers wait for each other, contexts come and go, and nothing else changes."""
        small, local = make_pair("llama", n_ctx=256)
        for model in (small, local):
            model.add_tokens("default", make_tokens(6))
        prompts = [
            RagPrompt(f"{number}, what?", [f"{number} and {number}. " + "The lighthouse. " * 6])
            for number in range(12)
        ]
        for _ in range(2):
            found, expected = (answers(model, prompts, num_tokens=[6, 0, 3] * 4) for model in (small, local))
            assert found == expected
        assert 0 < len(small.backend.kept_contexts) < 8


class TestStreams:
    def test_pieces_make_up_the_answer(self, ours):
        for prompt, k in zip(PROMPTS, KS, strict=True):
            stream = ours.stream(prompt, num_tokens=k, max_new_tokens=12)
            pieces = list(stream)
            assert stream.generation == answers(ours, [prompt], num_tokens=k)[0]
            assert "".join(pieces) == stream.generation.text

    def test_closing_stops_it(self, ours, read):
        stream = ours.stream(PROMPTS[0], max_new_tokens=150)
        next(stream)
        stream.close()
        assert sum(read) < 200
        assert answers(ours)

    def test_one_that_nobody_reads_hinders_nobody(self, ours):
        stream = ours.stream(PROMPTS[0], max_new_tokens=100)
        next(stream)
        assert answers(ours)
        assert stream.generation.finish_reason in ("stop", "length")


class TestThreads:
    def test_sixteen_get_what_each_gets_alone(self, ours):
        prompts = [
            RagPrompt(f"{number}: {QUESTIONS[number % 4]}", PASSAGES[number % 3]) for number in range(16)
        ]
        alone = [answers(ours, [prompt], num_tokens=number % 7)[0] for number, prompt in enumerate(prompts)]

        def ask(number):
            if number % 5 == 0:
                return ours.stream(prompts[number], num_tokens=number % 7, max_new_tokens=12).generation
            return answers(ours, [prompts[number]], num_tokens=number % 7)[0]

        with ThreadPoolExecutor(16) as pool:
            for _ in range(3):
                assert list(pool.map(ask, range(16))) == alone


class TestBackbones:
    def test_tokens_of_these_weights_attach(self, pair):
        ours, local = pair
        recorded = VirtualTokens(
            torch.randn(3, 32), backbone=BackboneRecord.of(local.backend.hf_model, "acme/tiny")
        )
        ours.add_tokens("recorded", recorded)
        assert ours.generate("hello", tokens="recorded")

    def test_tokens_of_others_are_refused(self, ours, build_model):
        other = VirtualTokens(
            torch.randn(3, 32), backbone=BackboneRecord.of(build_model("llama", seed=5), "acme/other")
        )
        with pytest.raises(BackboneMismatchError, match="acme/other"):
            ours.add_tokens("other-model", other)

    def test_tokens_trained_in_full_precision_attach_to_fewer_bits(self, pair, make_pair):
        small, _ = make_pair("llama", "Q4_0")
        recorded = VirtualTokens(
            torch.randn(3, 32), backbone=BackboneRecord.of(pair[1].backend.hf_model, "acme/tiny")
        )
        with pytest.warns(UserWarning, match=r"attached to .*Q4_0.*correlation 0\.9"):
            small.add_tokens("recorded", recorded)


class TestLayersOnTheGpu:
    """What llama.cpp is told. A build for the CPU puts none there, whatever it is told."""

    @pytest.fixture
    def told(self, monkeypatch):
        import llama_cpp

        told = []
        load, begin = llama_cpp.llama_model_load_from_file, llama_cpp.llama_init_from_model

        def loading(file, settings):
            told.append(settings.n_gpu_layers)
            return load(file, settings)

        def beginning(model, settings):
            told.append((settings.offload_kqv, settings.op_offload))
            return begin(model, settings)

        monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", loading)
        monkeypatch.setattr(llama_cpp, "llama_init_from_model", beginning)
        return told

    @pytest.mark.parametrize(
        ("options", "layers"),
        [
            ({}, -1),
            ({"device": "auto"}, -1),
            ({"device": "cpu"}, 0),
            ({"n_gpu_layers": 3}, 3),
            ({"n_gpu_layers": 0}, 0),
            ({"device": "cpu", "n_gpu_layers": 3}, 3),
        ],
    )
    def test_so_many(self, ours, told, options, layers):
        SpringModel.from_pretrained(ours.backend.model_id, engine="llama.cpp", **options)
        assert told == [layers, (layers != 0, layers != 0)]

    @pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
    def test_a_build_without_one_says_so(self, ours, device):
        with pytest.raises(BackendError, match=f"device '{device}' isn't available: .*built for the CPU"):
            SpringModel.from_pretrained(ours.backend.model_id, engine="llama.cpp", device=device)

    def test_no_such_number(self, ours):
        with pytest.raises(ValueError, match="n_gpu_layers is -2; it must be at least -1"):
            SpringModel.from_pretrained(ours.backend.model_id, engine="llama.cpp", n_gpu_layers=-2)


class TestErrors:
    def test_no_gguf(self, tmp_path):
        with pytest.raises(BackendError, match="llama.cpp reads a GGUF, and 'acme/model' names none"):
            SpringModel.from_pretrained("acme/model", engine="llama.cpp")

    def test_a_damaged_file(self, ours, tmp_path):
        (tmp_path / "half.gguf").write_bytes(Path(ours.backend.model_id).read_bytes()[:-4000])
        with pytest.raises(BackendError, match="can't read the GGUF .*half.gguf': "):
            SpringModel.from_pretrained(tmp_path / "half.gguf", engine="llama.cpp")

    def test_what_llama_cpp_can_t_load(self, llama, tokenizer, tmp_path, monkeypatch):
        monkeypatch.setitem(gguf_parts._NAMES, "norm", "another_norm")
        file = gguf_parts.write_gguf(tmp_path / "strange.gguf", llama, tokenizer)
        with pytest.raises(BackendError, match="llama.cpp can't load .*strange.gguf': .*output_norm"):
            SpringModel.from_pretrained(file, engine="llama.cpp")

    def test_what_it_doesn_t_take(self, ours):
        file = ours.backend.model_id
        with pytest.raises(
            BackendError, match="takes no device_map; a GGUF is loaded with device, dtype, n_ctx"
        ):
            SpringModel.from_pretrained(file, engine="llama.cpp", device_map="auto")
        with pytest.raises(BackendError, match="'int8'; llama.cpp keeps keys and values in"):
            SpringModel.from_pretrained(file, engine="llama.cpp", dtype="int8")
        with pytest.raises(BackendError, match="'tpu' is no device for llama.cpp"):
            SpringModel.from_pretrained(file, engine="llama.cpp", device="tpu")
        with pytest.raises(ValueError, match="n_ctx is 0; it must be at least 1"):
            SpringModel.from_pretrained(file, engine="llama.cpp", n_ctx=0)

    def test_a_prompt_that_is_too_long(self, ours):
        assert ours.backend.context_length == 256
        with pytest.raises(PromptTooLongError, match="tokens too long"):
            ours.generate("word " * 300)

    def test_prompts_that_are_none(self, ours):
        from spring_rag.backends.base import GenerationSettings, Request

        with pytest.raises(PromptError, match="is empty"):
            ours.backend.generate([Request(Encoded((), None))], GenerationSettings())
        with pytest.raises(PromptError, match="holds token id 999"):
            ours.backend.generate([Request(Encoded((5, 999), 1))], GenerationSettings())
        with pytest.raises(TokensError, match="'nowhere'"):
            ours.generate("hello", tokens="nowhere")

    def test_after_an_error_all_goes_on(self, ours, monkeypatch):
        engine = ours.backend._writer._engine
        before = answers(ours)
        decode, left = engine.decode, [3]

        def failing(pieces, *rest):
            left[0] -= 1
            if left[0] < 0:
                msg = "no more"
                raise BackendError(msg)
            return decode(pieces, *rest)

        monkeypatch.setattr(engine, "decode", failing)
        with pytest.raises(BackendError, match="no more"):
            answers(ours, [RagPrompt("who?", ["something new"]), *PROMPTS], num_tokens=1)
        monkeypatch.undo()
        assert answers(ours) == before
        assert len(ours.backend._writer.room._sequences) == 16


def test_memory_is_given_back(make_pair):
    """The weights and the cache go with the model."""
    model, _ = make_pair("llama", seed=7)
    freed = []
    weakref.finalize(model.backend._writer._engine, freed.append, True)
    del model
    gc.collect()
    assert freed


def test_skills_say_what_they_say_on_transformers(toy_gguf):
    answering = VirtualTokens.from_pretrained(toy_parts.TOKENS)
    models = [
        SpringModel.from_pretrained(toy_gguf, engine="llama.cpp", n_threads=1, tokens=answering),
        SpringModel.from_pretrained(toy_gguf, tokens=answering, device="cpu"),
    ]
    for model in models:
        for task in ("answerable", "cite"):
            model.add_skill(skill_tokens(task, answering))
    for question in toy_parts.ASKED:
        passages = [toy_parts.text_of(each) for each in toy_parts.ASKED]
        here, there = (model.ask(question.question, passages, max_new_tokens=8) for model in models)
        assert (here.text, here.citations) == (there.text, there.citations)
        assert here.answerable == pytest.approx(there.answerable, abs=1e-3)
        assert here.logprob == pytest.approx(there.logprob, abs=1e-2)
