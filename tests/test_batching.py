"""Test which prompts may be decoded together: no answer depends on the other prompts of its batch."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.batching import padded_rows_answer_alike
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded, encode
from spring_rag.errors import PromptTooLongError
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt
from spring_rag.splice import InputEmbedding

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

GREEDY = GenerationSettings(max_new_tokens=6)
IDS = {"vocab_size": 352, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {**IDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NEIGHBOURLY = {
    "minimax": lambda: MiniMaxForCausalLM(
        MiniMaxConfig(
            **SIZES, num_key_value_heads=2, head_dim=8, num_local_experts=2, initializer_range=0.2,
            layer_types=["linear_attention", "full_attention"],
        )
    ),
    "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**SIZES, num_key_value_heads=2, lru_width=32, block_types=["recurrent", "attention"])
    ),
    "rwkv": lambda: RwkvForCausalLM(
        RwkvConfig(**IDS, hidden_size=32, attention_hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    ),
    "bart": lambda: BartForCausalLM(
        BartConfig(
            **IDS, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, init_std=0.2,
            max_position_embeddings=128, is_decoder=True, is_encoder_decoder=False, pad_token_id=0,
        )
    ),
}  # fmt: skip


def make(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                torch.nn.init.normal_(weight, std=0.2)
    model.generation_config.eos_token_id = None
    return model


def attach(model, tokenizer, make_tokens):
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", make_tokens(6, backend.hidden_size))
    return backend


def prompt(length, start=5, slot=None):
    ids = tuple((start + 11 * at) % 300 for at in range(length))
    return Request(Encoded(ids, length - 2 if slot is None else slot))


@pytest.mark.parametrize("family", NEIGHBOURLY)
def test_families_that_read_padding_answer_one_by_one(tokenizer, make_tokens, family):
    backend = attach(make(NEIGHBOURLY[family]), tokenizer, make_tokens)
    requests = [prompt(length, start) for start, length in enumerate((30, 4, 17, 9), 3)]
    alone = [backend.generate([request], GREEDY)[0] for request in requests]
    assert backend.generate(requests, GREEDY) == alone
    assert backend.generate(requests[::-1], GREEDY) == alone[::-1]
    with torch.no_grad():
        assert not padded_rows_answer_alike(backend.hf_model, backend.embedding)


def test_a_model_is_tried_once(build_model, tokenizer, make_tokens):
    backend = attach(build_model("llama", tied=False), tokenizer, make_tokens)
    rows = []
    backend.hf_model.register_forward_pre_hook(
        lambda module, args, given: rows.append(
            len(given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"])
        ),
        with_kwargs=True,
    )
    two, brief = [prompt(9), prompt(5)], GenerationSettings(max_new_tokens=1)
    backend.generate(two[:1], brief)
    assert rows == [1]  # one prompt has no neighbours
    rows.clear()
    backend.generate(two, brief)
    assert len(rows) > 1
    rows.clear()
    backend.generate(two, brief)
    assert rows == [2]


def test_attention_with_positions_runs_in_batches(build_model):
    for family in ("llama", "gpt2", "opt", "gemma3", "falcon-alibi"):
        for dtype in (torch.float32, torch.bfloat16):
            model = build_model(family, tied=False, dtype=dtype)
            with torch.no_grad():
                assert padded_rows_answer_alike(model, InputEmbedding(model)), family


def longrope():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    return Phi3ForCausalLM(
        Phi3Config(
            **SIZES, num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=64,
            rope_parameters=rope, pad_token_id=0, initializer_range=0.2,
        )
    )  # fmt: skip


def dynamic():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    config = LlamaConfig(**SIZES, max_position_embeddings=64, rope_parameters=rope, initializer_range=0.2)
    return LlamaForCausalLM(config)


def test_prompts_on_both_sides_of_a_switch_of_positions(tokenizer, make_tokens):
    backend = attach(make(longrope), tokenizer, make_tokens)
    requests = [prompt(length, start) for start, length in enumerate((20, 90, 45, 120, 30), 3)]
    alone = [backend.generate([request], GREEDY)[0] for request in requests]
    assert backend.generate(requests, GREEDY) == alone
    sampled = GenerationSettings(max_new_tokens=6, temperature=1.0, seed=3)
    assert backend.generate(requests, sampled) == [
        backend.generate([request], sampled)[0] for request in requests
    ]


def test_a_plain_answer_may_grow_over_the_switch(tokenizer, make_tokens):
    backend = attach(make(longrope), tokenizer, make_tokens)
    requests = [
        Request(prompt(length, start).encoded, num_tokens=0) for start, length in ((3, 20), (4, 62), (5, 90))
    ]
    alone = [backend.generate([request], GREEDY)[0] for request in requests]
    assert backend.generate(requests, GREEDY) == alone


def test_prompts_just_below_the_switch_lose_passages_and_are_answered(tokenizer, make_tokens):
    model = SpringModel(make(longrope), tokenizer, tokens=make_tokens(6))
    assert model.backend.position_switch == 64
    whole = RagPrompt("Who?", ["It was Hale."] * 12)
    kept = set()
    for count in range(len(whole.passages) + 1):
        some = RagPrompt("Who?", whole.passages[:count])
        fitted = model.fitted(some, max_new_tokens=12)
        (answer,) = model.generate(some, max_new_tokens=12)
        assert answer.usage.context + answer.usage.suffix == len(encode(fitted, tokenizer).ids)
        kept.add(len(fitted.passages) - count)
        (plain,) = model.generate(some, max_new_tokens=12, num_tokens=0)
        assert plain.usage.context + plain.usage.suffix == len(encode(some, tokenizer).ids)
    assert min(kept) < 0 == max(kept)
    lengths = (len(encode(RagPrompt("Who?", whole.passages[:n]), tokenizer).ids) + 6 for n in range(13))
    count = next(n for n, length in enumerate(lengths) if length <= 64 < length + 11)
    rendered = RagPrompt("Who?", whole.passages[:count]).to_prompt()
    with pytest.raises(PromptTooLongError, match="changes its positions at 64 tokens"):
        model.generate(rendered, max_new_tokens=12)


def test_positions_that_grow_with_the_prompt(tokenizer, make_tokens):
    backend = attach(make(dynamic), tokenizer, make_tokens)
    backend.context_length = None
    requests = [prompt(length, start) for start, length in enumerate((20, 90, 45, 120), 3)]
    alone = []
    for request in requests:
        backend.generate(
            [prompt(5)], GREEDY
        )  # transformers keeps the last long prompt's positions until then
        alone += backend.generate([request], GREEDY)
    backend.generate([prompt(5)], GREEDY)
    assert backend.generate(requests, GREEDY) == alone
