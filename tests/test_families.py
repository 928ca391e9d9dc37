"""Test invariants 2 and 4 on every family: the backbone is untouched, and a virtual token can't be generated."""

import pytest
import torch
from backbone_parts import FAMILIES, MODEL_VOCAB_SIZE

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.splice import splice_batch

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

SETTINGS = GenerationSettings(max_new_tokens=12)
# Longer and shorter than the sliding windows, with the slot at the start, inside, at the end, and without one.
PROMPTS = [
    ("The lighthouse at Grey Point was built in 1887 by", 9),
    ("Question: who?\nAnswer:", 1),
    ("law books", None),
    ("x", 2),
]


@pytest.fixture(
    scope="module", params=[(family, tied) for family in FAMILIES for tied in (True, False)], ids=str
)
def backend(request, build_model, tokenizer, make_tokens):
    family, tied = request.param
    backend = LocalBackend(build_model(family, tied=tied), tokenizer)
    backend.add_tokens("default", make_tokens(6))
    backend.add_tokens("other", make_tokens(9, seed=1))
    return backend


@pytest.fixture(scope="module")
def encoded(tokenizer):
    return [Encoded(tuple(tokenizer(text)["input_ids"]), slot) for text, slot in PROMPTS]


@pytest.fixture(scope="module")
def requests(encoded):
    """Different k and different sets in one batch."""
    return [
        Request(prompt, name, k)
        for prompt, name, k in zip(encoded, [None, "other", "other", None], [6, 4, 9, 0], strict=True)
    ]


def _snapshot(backend):
    model, tokenizer = backend.hf_model, backend.tokenizer
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()},
        "buffers": {name: tensor.clone() for name, tensor in model.named_buffers()},
        "identity": {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()},
        "hooks": [
            (
                name,
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
                module.training,
            )
            for name, module in model.named_modules()
        ],
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": (
            len(tokenizer),
            tokenizer.special_tokens_map,
            tokenizer.padding_side,
            tokenizer.truncation_side,
        ),
    }


def _assert_same(before, after):
    for key, value in before.items():
        if key in ("weights", "buffers"):
            assert value.keys() == after[key].keys()
            for name in value:
                assert torch.equal(value[name], after[key][name]), (key, name)
        else:
            assert value == after[key], key


def test_backbone_is_untouched(backend, build_model, make_tokens, requests):
    before = _snapshot(backend)
    fresh = LocalBackend(backend.hf_model, backend.tokenizer)
    fresh.add_tokens("default", make_tokens(6))
    fresh.add_tokens("other", make_tokens(9, seed=1))
    fresh.generate(requests, SETTINGS)
    fresh.generate(
        requests,
        GenerationSettings(max_new_tokens=5, temperature=1.0, top_p=0.9, top_k=20, seed=1, stop=("a",)),
    )
    stream = fresh.stream(requests[0], SETTINGS)
    next(stream, None)
    stream.close()
    _assert_same(before, _snapshot(backend))


def test_no_virtual_tokens_gives_bit_identical_logits(backend, encoded):
    none = torch.empty(0, backend.hidden_size)
    batch = splice_batch(backend.embedding, encoded, [none] * len(encoded))
    longest = batch.attention_mask.shape[1]
    ids = torch.tensor([[prompt.ids[0]] * (longest - len(prompt.ids)) + [*prompt.ids] for prompt in encoded])
    with torch.no_grad():
        inputs = {"attention_mask": batch.attention_mask}
        plain = backend.hf_model(input_ids=ids, **inputs).logits
        ours = backend.hf_model(inputs_embeds=batch.inputs_embeds, **inputs).logits
    assert torch.equal(plain, ours)


def test_no_virtual_tokens_answers_like_plain_generate(backend, encoded, tokenizer):
    answers = backend.generate([Request(prompt, num_tokens=0) for prompt in encoded], SETTINGS)
    for prompt, answer in zip(encoded, answers, strict=True):
        ids = torch.tensor([prompt.ids])
        plain = backend.hf_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        assert list(answer.token_ids) == plain[0, ids.shape[1] :].tolist()
        assert answer.usage.virtual == 0


def test_batched_single_and_streamed_answers_agree(backend, requests):
    batched = backend.generate(requests, SETTINGS)
    assert batched == [backend.generate([request], SETTINGS)[0] for request in requests]
    assert [answer.text for answer in batched] == [
        "".join(backend.stream(request, SETTINGS)) for request in requests
    ]
    assert [answer.usage.virtual for answer in batched] == [6, 4, 0, 0]


def test_virtual_tokens_are_seen_and_in_their_place(backend, encoded):
    """Compared with the logits of a sequence that is put together by hand."""
    # Near the end, where also a sliding window sees it.
    prompt, tokens = Encoded(encoded[0].ids, len(encoded[0].ids) - 4), backend.tokens().matrix
    layer = backend.hf_model.get_input_embeddings()
    scale = 32**0.5 if "Gemma" in type(backend.hf_model).__name__ else 1.0
    with torch.no_grad():
        plain = layer(torch.tensor([prompt.ids]))
        by_hand = torch.cat(
            [plain[:, : prompt.slot], tokens[None] * torch.tensor(scale), plain[:, prompt.slot :]], dim=1
        )
        without = backend.hf_model(inputs_embeds=plain).logits[0, -1]
        expected = backend.hf_model(inputs_embeds=by_hand).logits[0, -1]
    assert not torch.allclose(expected, without, atol=1e-3)
    assert backend.generate([Request(prompt)], SETTINGS)[0].token_ids[0] == expected.argmax()


def test_only_the_backbones_vocabulary_can_be_generated(backend, requests):
    logits = backend.hf_model(torch.tensor([[1, 2]])).logits
    assert logits.shape[-1] == MODEL_VOCAB_SIZE == backend.hf_model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hot = backend.generate(requests * 4, GenerationSettings(max_new_tokens=30, temperature=50.0))
    ids = {one for answer in hot for one in answer.token_ids}
    assert max(ids) < MODEL_VOCAB_SIZE
    assert len(ids) > 150  # hot enough that anything with a logit would turn up
