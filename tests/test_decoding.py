"""Test models whose `generate` takes no embeddings by itself."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    NemotronHConfig,
    NemotronHForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ZambaConfig,
    ZambaForCausalLM,
)

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.errors import UnsupportedBackboneError

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

GREEDY = GenerationSettings(max_new_tokens=6)
SIZES = {
    "vocab_size": 352, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
FAMILIES = {
    "gemma3": lambda: Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**SIZES, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
            vision_config=VISION,
            image_token_index=350,
            boi_token_index=348,
            eoi_token_index=349,
            mm_tokens_per_image=1,
        )
    ),
    "bamba": lambda: BambaForCausalLM(BambaConfig(**SIZES, **MAMBA, attn_layer_indices=[1])),
    "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**SIZES, **MAMBA, mamba_d_ssm=64)),
    "zamba": lambda: ZambaForCausalLM(
        ZambaConfig(
            **{**SIZES, "num_hidden_layers": 4}, attention_head_dim=16, n_mamba_heads=2, mamba_d_state=8,
            attn_layer_period=2, attn_layer_offset=1, layers_block_type=["mamba", "hybrid"] * 2,
        )
    ),
    "nemotron_h": lambda: NemotronHForCausalLM(
        NemotronHConfig(
            **{**SIZES, "num_hidden_layers": 3}, layers_block_type=["mamba", "attention", "mlp"], head_dim=8,
            mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1, chunk_size=8,
        )
    ),
}  # fmt: skip


def make(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.2)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_hand_embeddings_on_without_naming_them(tokenizer, make_tokens, family):
    model = make(family)
    before = dict(vars(model))
    backend = LocalBackend(model, tokenizer)
    backend.add_tokens("default", make_tokens(6))
    requests = [
        Request(Encoded(tuple(range(5, 5 + length)), length - 3), None, k)
        for length, k in ((20, 6), (9, 6), (14, 0), (20, 3))
    ]
    answers = backend.generate(requests, GREEDY)
    assert answers == [backend.generate([request], GREEDY)[0] for request in requests]
    assert ["".join(backend.stream(request, GREEDY)) for request in requests] == [one.text for one in answers]
    for request, answer in zip(requests, answers, strict=True):
        assert list(answer.token_ids) == greedy(backend, request, len(answer.token_ids))
    assert answers[0].usage.virtual == 6
    assert vars(model) == before


def greedy(backend, request, count):
    """The answer without any cache: the whole sequence is read for every token."""
    ids, slot, k = request.encoded.ids, request.encoded.slot, request.num_tokens
    layer, matrix = backend.hf_model.get_input_embeddings(), backend.tokens().matrix[:k]
    found = []
    for _ in range(count):
        with torch.no_grad():
            before, behind = layer(torch.tensor(ids[:slot])), layer(torch.tensor([*ids[slot:], *found]))
            spliced = torch.cat([before, matrix * backend.embedding.scale, behind])
            found.append(int(backend.hf_model(inputs_embeds=spliced[None]).logits[0, -1].argmax()))
    return found


def test_a_family_that_drops_embeddings_is_refused_by_name(tokenizer):
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=352, n_embd=32, n_layer=1, n_head=2)).eval()
    with pytest.raises(UnsupportedBackboneError, match="OpenAIGPTLMHeadModel .* hands no `inputs_embeds` on"):
        LocalBackend(model, tokenizer)


def test_under_peft_it_says_what_to_do(tokenizer):
    adapted = get_peft_model(make("bamba"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with pytest.raises(UnsupportedBackboneError, match="merge_and_unload"):
        LocalBackend(adapted, tokenizer)
