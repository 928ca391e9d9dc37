"""Test the loading of models that transformers doesn't count as causal language models."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.errors import SpringError, UnsupportedBackboneError

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

TEXT = {
    "vocab_size": 352, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
WITH_IMAGES = {
    "llava": lambda: LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={**TEXT, "model_type": "llama"}, vision_config={**VISION, "model_type": "clip_vision_model"},
            image_token_index=350,
        )
    ),
    "mistral3": lambda: Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={**TEXT, "model_type": "mistral"}, vision_config={**VISION, "model_type": "pixtral", "head_dim": 8},
            image_token_index=350,
        )
    ),
}  # fmt: skip
OTHERS = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=352, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
    "vit": lambda: ViTModel(ViTConfig(**VISION)),
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=352, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    ),
}


def save(make, tokenizer, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_language_models_with_an_image_encoder(tokenizer, make_tokens, tmp_path, family):
    model = save(WITH_IMAGES[family], tokenizer, tmp_path)
    backends = [LocalBackend(model, tokenizer), LocalBackend.from_pretrained(tmp_path, device="cpu")]
    requests = [Request(Encoded(tuple(range(5, 5 + length)), length - 3), None, 6) for length in (14, 7)]
    answers = []
    for backend in backends:
        backend.add_tokens("default", make_tokens(6))
        answers.append(backend.generate(requests, GenerationSettings(max_new_tokens=6)))
    assert answers[0] == answers[1]
    assert answers[0][0].usage.virtual == 6


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("t5", "T5ForConditionalGeneration can't take virtual tokens: it is an encoder with a decoder"),
        ("vit", "ViTModel can't take virtual tokens: it writes no text"),
    ],
)
def test_others_are_refused_by_name(tokenizer, tmp_path, family, says):
    save(OTHERS[family], tokenizer, tmp_path)
    with pytest.raises(UnsupportedBackboneError, match=says) as error:
        LocalBackend.from_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_an_encoder_alone_is_no_backbone(tokenizer, tmp_path):
    save(OTHERS["bert"], tokenizer, tmp_path)
    with pytest.raises(SpringError, match="incomplete|can't take virtual tokens"):
        LocalBackend.from_pretrained(tmp_path, device="cpu")
