"""The demo's tokenizer and its backbone before training."""

from collections.abc import Iterator
from random import Random
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spring_rag.demo.build.lessons import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    END,
    PAD,
    SYSTEM,
    USER,
    lesson,
    shape,
)

_SPLIT = r"[0-9]+| ?[A-Za-z]+|\s*\n| ?[^\sA-Za-z0-9]+|\s+"
_ROPE_THETA = 1e7
_MATCH, _COPY, _AWAY, _OWN = 1.2, 0.5, 1.0, 0.65


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on lessons; numbers stand apart from the space before them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    rng = Random(seed)
    special = [PAD, BOS, END, USER, ASSISTANT, SYSTEM]

    def texts() -> Iterator[str]:
        for _ in range(6000):
            row = "".join(part.text for part in lesson(rng, shape(rng, rng.randint(1, 4)), len, 1500))
            for token in special:
                row = row.replace(token, "\n")
            yield row

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer


def small_llama(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _start_with_circuits(model)
    return model


# Offsets that the heads of the first two layers look back by, and the rotary frequencies they do it with: high ones look at
# one token, lower ones at a neighbourhood.
_LOOKS = (
    ((1, slice(0, 5)), (2, slice(0, 5)), (3, slice(0, 5)), (4, slice(0, 5))),
    ((5, slice(0, 5)), (7, slice(1, 6)), (9, slice(1, 6)), (12, slice(2, 7))),
)


@torch.no_grad()
def _start_with_circuits(model: LlamaForCausalLM) -> None:
    """Let attention begin as what reading needs, since waiting for it to appear costs most of a short training.

    Embeddings begin in the first half of the dimensions. The heads of the first two layers note in the second half which tokens
    stand shortly before, so that a value knows the name beside it. In the third layer, heads attend to places with the same
    neighbours and copy what stands there: an induction circuit (Olsson et al. 2022, arXiv 2209.11895) over bags of tokens.
    Weights set by hand as a start: "mimetic" initialisation (Trockman and Kolter 2023, arXiv 2305.09828).
    """
    hidden = model.config.hidden_size
    size = hidden // model.config.num_attention_heads
    half, pairs = hidden // 2, size // 2
    table = cast(torch.Tensor, model.get_input_embeddings().weight)
    table[:, half:] = 0
    table.mul_(2**0.5)
    # Looking back by an offset needs what every token has: a constant, to which softmax over the tied logits is blind.
    table[:, 0] = 0.15
    frequencies = _ROPE_THETA ** (-torch.arange(pairs) / pairs)
    noted = nn.init.orthogonal_(torch.empty(size, half))
    noted[:, 0] = 0
    copied = nn.init.orthogonal_(torch.empty(half, half))
    for number, layer in enumerate(cast(nn.ModuleList, model.model.layers)):
        attention = {
            name: cast(nn.Linear, layer.get_submodule(f"self_attn.{name}_proj")).weight for name in "qkvo"
        }
        cast(nn.Linear, layer.get_submodule("mlp.down_proj")).weight.mul_(0.1)
        if number > len(_LOOKS):
            attention["o"].mul_(0.25)
            continue
        for weight in attention.values():
            weight.mul_(0.1)
        for head in range(model.config.num_attention_heads):
            rows = slice(head * size, (head + 1) * size)
            if number < len(_LOOKS):
                offset, band = _LOOKS[number][head]
                angle = offset * frequencies[band]
                cosines = head * size + torch.arange(pairs)[band]
                attention["k"][cosines, 0] = 1.0
                attention["q"][cosines, 0] = angle.cos()
                attention["q"][cosines + pairs, 0] = -angle.sin()
                attention["v"][rows, :half] = 0.12 * noted
                attention["o"][half : half + size, rows] = 0.12 * torch.eye(size)
            elif head < 2:
                # Only the slow half of the rotary pairs compares content alike over any distance.
                slow = torch.arange(pairs // 2, pairs)
                for place, dims in enumerate((slow, slow + pairs)):
                    which = (2 * head + place) * (pairs // 2) + torch.arange(pairs // 2)
                    for name in "qk":
                        attention[name][head * size + dims, half + which] = _MATCH
                    # What precedes a place there should be like what ends here, this token included.
                    attention["q"][head * size + dims, :half] += _OWN * _MATCH * noted[which]
                # Not what stands just before: a question resembles itself most.
                near = head * size + torch.arange(5, 9)
                attention["q"][near, 0], attention["k"][near, 0] = _AWAY, -_AWAY
                attention["v"][rows, :half] = _COPY * copied[head * size : (head + 1) * size]
                attention["o"][:half, rows] = _COPY * copied[head * size : (head + 1) * size].T
