"""Test rows of one context in one batch: the context is computed once, and every row answers as it does alone."""

import threading

import pytest
import torch
from backbone_parts import FAMILIES
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from spring_rag.backends import prefix
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.backends.prefix import RoomyLayer
from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

SETTINGS = GenerationSettings(max_new_tokens=40)  # past the room that a cache grows by
# Contexts longer and shorter than the sliding windows; suffixes of several lengths on one context; slots at both ends.
CONTEXTS = [
    ("The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons.\n", 5),
    ("law books, ships and captains, mountains and law books, of ships and their captains\n", 2),
    ("[1] A passage\n", 1),
]
QUESTIONS = ["Question: who?\nAnswer:", "Question: who built the lighthouse at the point?\nAnswer:", ""]


@pytest.fixture(scope="module")
def make_requests(tokenizer):
    def make(contexts=CONTEXTS, ks=(0, 6, 1, 3)):
        requests = []
        for context, _ in contexts:
            start = tuple(tokenizer(context)["input_ids"])
            for question in QUESTIONS:
                rest = tuple(tokenizer(question, add_special_tokens=False)["input_ids"])
                encoded = Encoded(start + rest, len(start))
                requests += [Request(encoded, None, k) for k in ks] + [Request(encoded, "other", 9)]
        return requests

    return make


@pytest.fixture
def forwards(monkeypatch):
    """Shapes of what goes through a backbone, `[B, L]` each."""

    def watch(model):
        seen = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(
                tuple(
                    (
                        kwargs.get("inputs_embeds")
                        if kwargs.get("input_ids") is None
                        else kwargs["input_ids"]
                    ).shape[:2]
                )
            ),
            with_kwargs=True,
        )
        return seen

    return watch


def attach(model, tokenizer, make_tokens):
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", make_tokens(6, backend.hidden_size))
    backend.add_tokens("other", make_tokens(9, backend.hidden_size, seed=1))
    return backend


@pytest.fixture(scope="module", params=[*FAMILIES, "bloom", "mpt"])
def backend(request, build_model, tokenizer, make_tokens):
    sizes = {"vocab_size": 352, "hidden_size": 32, "initializer_range": 0.2, "eos_token_id": 2}
    if request.param == "bloom":
        model = BloomForCausalLM(BloomConfig(**sizes, n_layer=2, n_head=4)).eval()
    elif request.param == "mpt":
        model = MptForCausalLM(
            MptConfig(
                vocab_size=352, d_model=32, n_layers=2, n_heads=4, initializer_range=0.2, max_seq_len=256
            )
        ).eval()
    else:
        model = build_model(request.param, tied=False)
    return attach(model, tokenizer, make_tokens)


def test_rows_answer_as_they_do_without_sharing(backend, make_requests, forwards, monkeypatch):
    requests = make_requests()
    backend.generate(requests, SETTINGS)  # tries once what the model can
    seen = forwards(backend.hf_model)
    shared = backend.generate(requests, SETTINGS)
    longest = max(len(request.encoded.context_ids) for request in requests)
    assert seen[0] == (3, longest)
    decoded = {rows for rows, width in seen[1:] if width == 1}
    assert {9, 36} <= decoded  # plain ones apart, and nobody waits for them
    assert max(decoded) == 36
    assert max(width for _, width in seen[1:]) < longest
    monkeypatch.setattr(prefix, "_possible", lambda model: False)
    seen.clear()
    assert backend.generate(requests, SETTINGS) == shared
    assert seen[0][0] == 45
    assert seen[0][1] > longest


def test_brief_answers_are_read_together(backend, make_requests, forwards, monkeypatch):
    requests, brief = make_requests(), GenerationSettings(max_new_tokens=3)
    seen = forwards(backend.hf_model)
    shared = backend.generate(requests, brief)
    assert (45, 1) in seen
    monkeypatch.setattr(prefix, "_possible", lambda model: False)
    assert backend.generate(requests, brief) == shared


@pytest.fixture
def llama_backend(build_model, tokenizer, make_tokens):
    return attach(build_model("llama", tied=False), tokenizer, make_tokens)


def test_streams_stop_strings_and_samples_agree(llama_backend, make_requests):
    requests = make_requests(CONTEXTS[:1])
    for settings in (
        GenerationSettings(max_new_tokens=20, stop=("e", "a")),
        GenerationSettings(max_new_tokens=20, temperature=0.8, top_p=0.9, seed=3),
    ):
        together = llama_backend.generate(requests, settings)
        assert together == [llama_backend.generate([request], settings)[0] for request in requests]


def test_prompts_without_a_slot_share_too(llama_backend, tokenizer, forwards):
    encoded = Encoded(tuple(tokenizer(CONTEXTS[0][0])["input_ids"]), None)
    alone = llama_backend.generate([Request(encoded)], SETTINGS)[0]
    llama_backend.generate([Request(encoded)] * 12, SETTINGS)  # tries once what the model can
    seen = forwards(llama_backend.hf_model)
    assert llama_backend.generate([Request(encoded)] * 12, SETTINGS) == [alone] * 12
    assert seen[0] == (1, len(encoded.ids))
    assert seen[1] == (12, 1)


def test_slots_at_the_start_and_wrong_ids_are_no_trouble(llama_backend, make_requests):
    at_the_start = [Request(Encoded((5, 6, 7) * 9, 0), None, k) for k in (0, 1, 6, 6)] * 4
    for requests in (at_the_start, at_the_start + make_requests(CONTEXTS[:1])):
        together = llama_backend.generate(requests, GenerationSettings(max_new_tokens=6))
        for number in (0, 2, len(requests) - 1):
            alone = llama_backend.generate([requests[number]], GenerationSettings(max_new_tokens=6))
            assert together[number] == alone[0]
    with pytest.raises(PromptError, match="another model"):
        llama_backend.generate([Request(Encoded((5, 999) * 20, 30))] * 12, SETTINGS)


def test_nothing_to_share_runs_as_one_batch(llama_backend, make_requests, forwards):
    requests = make_requests(ks=())[::3]  # one for each context
    llama_backend.generate(requests, SETTINGS)  # tries once what the model can
    seen = forwards(llama_backend.hf_model)
    llama_backend.generate(requests, SETTINGS)
    assert {rows for rows, _ in seen} == {3}
    seen.clear()
    short = Encoded((5, 6), 1)
    llama_backend.generate([Request(short, None, 6), Request(short, None, 0)], SETTINGS)
    assert {rows for rows, _ in seen} == {2}


@pytest.mark.parametrize(
    "own",
    [{"cache_implementation": "static"}, {"prefill_chunk_size": 16}, {"cache_implementation": "offloaded"}],
)
def test_another_cache_that_the_model_asks_for_is_left_to_it(llama_backend, own):
    llama_backend.hf_model.generation_config = GenerationConfig(eos_token_id=2, **own)
    assert not prefix._possible(llama_backend.hf_model)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_are_not_shared(llama_backend, rope):
    config = llama_backend.hf_model.config
    assert prefix._possible(llama_backend.hf_model)
    config.rope_parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    assert not prefix._possible(llama_backend.hf_model)
    config.rope_parameters = {
        "full_attention": {"rope_type": "default"},
        "sliding_attention": {"rope_type": rope},
    }
    assert not prefix._possible(llama_backend.hf_model)


def test_a_recurrent_state_is_not_shared(tokenizer, make_tokens, make_requests):
    config = Lfm2Config(
        vocab_size=352, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["conv", "full_attention"], eos_token_id=2,
    )  # fmt: skip
    backend = attach(Lfm2ForCausalLM(config).eval(), tokenizer, make_tokens)
    requests = make_requests(CONTEXTS[:1], ks=(0, 3))
    assert not prefix._possible(backend.hf_model)
    assert len(backend.generate(requests, GenerationSettings(max_new_tokens=2))) == 9


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_models_attention_is_left_alone(build_model, tokenizer, make_tokens, make_requests, attention):
    model = build_model("llama", tied=False)
    model.set_attn_implementation(attention)
    used, own = [], dict(vars(model.config))

    def note(module, args):
        used.append((module.config._attn_implementation, vars(module.config) == own))

    model.model.layers[0].self_attn.register_forward_pre_hook(note)
    backend = attach(model, tokenizer, make_tokens)
    requests = make_requests(CONTEXTS[:1])
    assert backend.generate(requests, SETTINGS) == [
        backend.generate([request], SETTINGS)[0] for request in requests
    ]
    assert set(used) == {(attention, True)}


def test_an_attention_that_changes_what_the_cache_gave(tokenizer, make_tokens, make_requests):
    config = DiffLlamaConfig(
        vocab_size=352, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, eos_token_id=2,
    )  # fmt: skip
    backend = attach(DiffLlamaForCausalLM(config).eval(), tokenizer, make_tokens)
    requests, greedy = make_requests(CONTEXTS[:2]), GenerationSettings(max_new_tokens=8)
    assert backend.generate(requests, greedy) == [backend.generate([one], greedy)[0] for one in requests]


def test_many_rows_on_one_context_and_few_on_others(llama_backend, make_requests):
    same, *others = make_requests(ks=(6,))[::6]
    requests, greedy = [same] * 8 + others, GenerationSettings(max_new_tokens=8)
    assert llama_backend.generate(requests, greedy) == [
        llama_backend.generate([one], greedy)[0] for one in requests
    ]


@pytest.mark.parametrize("models", ["one model", "one config"])
def test_backends_may_run_at_once(build_model, tokenizer, make_tokens, make_requests, models):
    model = build_model("llama", tied=False)
    others = [model if models == "one model" else LlamaForCausalLM(model.config).eval() for _ in range(2)]
    backends = [attach(one, tokenizer, make_tokens) for one in (model, *others)]
    requests = [make_requests(CONTEXTS[number : number + 1] * 2) for number in range(len(backends))]
    greedy = GenerationSettings(max_new_tokens=24)
    expected = [
        [backend.generate([one], greedy)[0] for one in some]
        for backend, some in zip(backends, requests, strict=True)
    ]
    found: dict[int, list[object]] = {number: [] for number in range(len(backends))}

    def answer(number):
        found[number] += [backends[number].generate(requests[number], greedy) for _ in range(4)]

    threads = [threading.Thread(target=answer, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [one] * 4 for number, one in enumerate(expected)}


@pytest.mark.parametrize("steps", [1, 5])
def test_a_roomy_layer_holds_what_a_plain_one_does(steps):
    plain, first = DynamicLayer(), (torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4))
    plain.update(*(one[:, :, :7] for one in first))
    roomy = RoomyLayer(*first, held=7)
    for width in [steps] * 60:
        keys, values = torch.randn(2, 3, width, 4), torch.randn(2, 3, width, 4)
        for expected, found in zip(plain.update(keys, values), roomy.update(keys, values), strict=True):
            assert torch.equal(expected, found)
    assert roomy.get_seq_length() == plain.get_seq_length() == 7 + 60 * steps
    plain.crop(-3)
    roomy.crop(-3)
    assert torch.equal(plain.update(keys, values)[0], roomy.update(keys, values)[0])
