"""Attention over contexts that rows share: the numbers of attention over copies, without the copies."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM, DynamicCache, LlamaForCausalLM

from spring_rag.backends import prefix, shared_context
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.backends.shared_context import RoomyLayer, SharedContext, Sharing
from spring_rag.encoding import Encoded

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

HANDS_ON = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "granite")
KEEPS_COPIES = (
    "mistral",
    "gemma2",
    "gemma3",
    "falcon-rotary",
    "falcon-alibi",
)  # windows, soft caps, older code
HEAD_DIM = 8


def attach(model, tokenizer, make_tokens):
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", make_tokens(6, backend.hidden_size))
    return backend


def make_requests(contexts=2, width=60):
    context_ids = [
        tuple(5 + (seed * 7 + at) % 300 for at in range(width - 9 * seed)) for seed in range(contexts)
    ]
    return [
        Request(Encoded((*ids, 11, 12, 13 + k), len(ids)), None, k)
        for ids in context_ids
        for k in (0, 1, 3, 6)
    ]


@pytest.fixture
def layers(monkeypatch):
    """Of each batch's cache: for each layer the columns that it holds for the rows themselves, and whether contexts come before them."""
    seen = []
    whole = prefix._cache

    def watch(*args):
        cache = whole(*args)
        seen.extend((layer.keys.shape[2], bool(getattr(layer, "context", None))) for layer in cache.layers)
        return cache

    monkeypatch.setattr(prefix, "_cache", watch)
    return seen


@st.composite
def batches(draw):
    count = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    columns = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(0, columns), min_size=len(rows), max_size=len(rows)))
    return count, rows, columns, lengths


@settings(deadline=None)
@given(
    batch=batches(),
    queries=st.integers(1, 3),
    before=st.integers(0, 4),
    groups=st.sampled_from([1, 2]),
    value_dim=st.sampled_from([HEAD_DIM, HEAD_DIM // 2]),
    scores_at_a_time=st.sampled_from([1, 100, 2**26]),
)
def test_attention_is_that_over_copies(batch, queries, before, groups, value_dim, scores_at_a_time):
    count, which, columns, lengths = batch
    heads, rows = 2, len(which)
    dims = (HEAD_DIM, value_dim)
    contexts = [torch.randn(count, heads, columns, dim) for dim in dims]
    own = [torch.randn(rows, heads, before + queries, dim) for dim in dims]
    query = torch.randn(rows, heads * groups, queries, HEAD_DIM)
    copies = [torch.zeros(rows, heads, columns, dim) for dim in dims]
    mask = torch.zeros(rows, 1, queries, columns + before + queries, dtype=torch.bool)
    mask[..., columns:] = torch.ones(queries, before + queries).tril(before).bool()
    for row, (context, length) in enumerate(zip(which, lengths, strict=True)):
        for copied, states in zip(copies, contexts, strict=True):
            copied[row, :, columns - length :] = states[context, :, :length]
        mask[row, ..., columns - length : columns] = True
    expected = functional.scaled_dot_product_attention(
        query, *(torch.cat(pair, dim=2) for pair in zip(copies, own, strict=True)), attn_mask=mask, scale=0.7, enable_gqa=True
    )  # fmt: skip

    sharing = Sharing.of(which, lengths, columns=columns, contexts=count)
    layer = RoomyLayer(*(one.clone() for one in own), before, SharedContext(*contexts, sharing))
    assert layer.get_mask_sizes(queries) == (columns + before + queries, 0)
    keys, values = layer.update(*(one[:, :, before:] for one in own))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_context, "_MOST_SCORES", scores_at_a_time)
        found, _ = shared_context._attention(torch.nn.Identity(), query, keys, values, mask, scaling=0.7)
        torch.testing.assert_close(found.transpose(1, 2), expected)
        if mask.all():
            found, _ = shared_context._attention(torch.nn.Identity(), query, keys, values, None, scaling=0.7)
            torch.testing.assert_close(found.transpose(1, 2), expected)


def test_products_beyond_half_precision_are_no_trouble():
    context = [torch.full((1, 1, 4, 128), 60.0, dtype=torch.float16)] * 2
    own = [torch.full((1, 1, 1, 128), 50.0, dtype=torch.float16)] * 2
    query = torch.full((1, 1, 1, 128), 60.0, dtype=torch.float16)
    layer = RoomyLayer(
        *(one[:, :, :0] for one in own),
        0,
        SharedContext(*context, Sharing.of([0], [4], columns=4, contexts=1)),
    )
    found, _ = shared_context._attention(torch.nn.Identity(), query, *layer.update(*own), None)
    assert torch.equal(found, torch.full_like(found, 60.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("family", HANDS_ON)
def test_contexts_are_not_copied(build_model, tokenizer, make_tokens, layers, family, device, dtype):
    backend = attach(build_model(family, tied=False, dtype=dtype).to(device), tokenizer, make_tokens)
    requests = make_requests()
    answers = backend.generate(requests, GenerationSettings(max_new_tokens=8))
    assert layers
    assert all(shared and columns < 20 for columns, shared in layers)
    assert backend.hf_model.config._attn_implementation == "sdpa"
    if dtype == torch.float32:
        assert answers == [
            backend.generate([one], GenerationSettings(max_new_tokens=8))[0] for one in requests
        ]


@pytest.mark.parametrize("family", KEEPS_COPIES)
def test_other_attentions_get_copies(build_model, tokenizer, make_tokens, layers, family):
    backend = attach(build_model(family, tied=False), tokenizer, make_tokens)
    own = backend.hf_model.config._attn_implementation
    backend.generate(make_requests(), GenerationSettings(max_new_tokens=8))
    assert layers
    assert not any(shared for _, shared in layers)
    assert backend.hf_model.config._attn_implementation == own


def test_an_attention_that_was_asked_for_stays(build_model, tokenizer, make_tokens, layers):
    model = build_model("llama", tied=False)
    model.set_attn_implementation("eager")
    backend = attach(model, tokenizer, make_tokens)
    backend.generate(make_requests(), GenerationSettings(max_new_tokens=8))
    assert layers
    assert not any(shared for _, shared in layers)
    assert model.config._attn_implementation == "eager"


def test_a_layer_that_fails_under_another_name_gets_copies(build_model, tokenizer, make_tokens, layers):
    model = build_model("llama", tied=False)

    def refuse(module, args, kwargs):
        if module.config._attn_implementation != "sdpa":
            msg = "unknown attention"
            raise KeyError(msg)

    model.model.layers[1].self_attn.register_forward_pre_hook(refuse, with_kwargs=True)
    attach(model, tokenizer, make_tokens).generate(make_requests(), GenerationSettings(max_new_tokens=8))
    assert layers
    assert not any(shared for _, shared in layers)
    assert model.config._attn_implementation == "sdpa"


def test_an_attention_that_changes_what_the_cache_gave_gets_copies(tokenizer, make_tokens, layers):
    config = DiffLlamaConfig(
        vocab_size=352, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, eos_token_id=2,
    )  # fmt: skip
    backend = attach(DiffLlamaForCausalLM(config).eval(), tokenizer, make_tokens)
    requests, greedy = make_requests(), GenerationSettings(max_new_tokens=8)
    assert backend.generate(requests, greedy) == [backend.generate([one], greedy)[0] for one in requests]
    assert not any(shared for _, shared in layers)


def test_many_rows_on_one_context_and_few_on_others_get_copies(build_model, tokenizer, make_tokens, layers):
    backend = attach(build_model("llama", tied=False), tokenizer, make_tokens)
    same, *others = make_requests(contexts=4)[::4]
    backend.generate([same] * 8 + others, GenerationSettings(max_new_tokens=8))
    assert layers
    assert not any(shared for _, shared in layers)


@pytest.mark.parametrize("models", ["one model", "one config"])
def test_backends_may_run_at_once(build_model, tokenizer, make_tokens, models):
    model = build_model("llama", tied=False)
    others = [model if models == "one model" else LlamaForCausalLM(model.config).eval() for _ in range(2)]
    backends = [attach(one, tokenizer, make_tokens) for one in (model, *others)]
    requests = [make_requests(width=60 + 5 * number) for number in range(len(backends))]
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
    assert model.config._attn_implementation == "sdpa"


def test_a_plain_use_of_the_model_meanwhile_is_not_touched(build_model):
    model = build_model("llama", tied=False)
    ids = torch.arange(10, 30)[None]
    cache = DynamicCache(config=model.config)
    states = [torch.zeros(1, 4, 1, HEAD_DIM)] * 2
    sharing = Sharing.of([0], [1], columns=1, contexts=1)
    cache.layers[0] = RoomyLayer(*states, 0, SharedContext(*states, sharing))
    with torch.no_grad():
        expected = model(ids).logits
        with shared_context.attending(model, cache):
            assert model.config._attn_implementation != "sdpa"
            assert torch.equal(model(ids).logits, expected)
