"""Chat templates with the structure of today's, a tokenizer for them, and a tiny model that writes what a test wants it to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

_CHATML = "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% else %}"
_END = "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
_REASONING = "{% set r = m.reasoning_content if m.reasoning_content is string else '' %}"
_OFF = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
_THINK = ("<think>", "</think>")
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """A family's chat template.

    Attributes:
        template: as short as shows how the real one begins, ends and switches off thoughts.
        special: special tokens, which decoding leaves out.
        added: other added tokens.
        off: what asks it not to think.
        prompt: the end of a prompt that isn't to think.
        thinking_prompt: the end of one that is.
        target: what leads to an answer that is trained after `thinking_prompt`.
        written: what a backbone writes after `thinking_prompt` that thinks "hm" and answers "Oslo".
    """

    template: str
    special: tuple[str, ...]
    added: tuple[str, ...]
    off: dict[str, object]
    prompt: str
    thinking_prompt: str
    target: str
    written: str


FAMILIES = {
    "qwen-3": Family(
        f"{_CHATML}{_REASONING}{{% if loop.last %}}<|im_start|>assistant\n<think>\n{{{{ r }}}}\n</think>\n\n{{{{ m.content }}}}"
        f"{{% else %}}<|im_start|>assistant\n{{{{ m.content }}}}{{% endif %}}{_END}{_OFF}{{% endif %}}{{% endif %}}",
        _CHATML_TOKENS,
        _THINK,
        {"enable_thinking": False},
        "assistant\n<think>\n\n</think>\n\n",
        "assistant\n",
        "",
        "<think>\nhm\n</think>\n\nOslo<|im_end|>",
    ),
    "qwen-3.5": Family(
        f"{_CHATML}{_REASONING}<|im_start|>assistant\n<think>\n{{{{ r }}}}\n</think>\n\n{{{{ m.content }}}}{_END}{_OFF}"
        "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}",
        _CHATML_TOKENS,
        _THINK,
        {"enable_thinking": False},
        "assistant\n<think>\n\n</think>\n\n",
        "assistant\n<think>\n",
        "\n</think>\n\n",
        "hm\n</think>\n\nOslo<|im_end|>",
    ),
    "nemotron-3": Family(
        f"{_CHATML}<|im_start|>assistant\n{{% if m.reasoning_content is string %}}<think>\n{{{{ m.reasoning_content }}}}\n</think>\n"
        f"{{{{ m.content }}}}{{% else %}}<think></think>{{{{ m.content }}}}{{% endif %}}{_END}"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}{{ '<think>\n' }}{% endif %}{% endif %}",
        _CHATML_TOKENS,
        _THINK,
        {"enable_thinking": False},
        "assistant\n<think></think>",
        "assistant\n<think>\n",
        "\n</think>\n",
        "hm\n</think>\nOslo<|im_end|>",
    ),
    "deepseek-r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{% set c = m.content %}"
        "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + c + eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜User｜>", "<｜Assistant｜>"),
        _THINK,
        {},
        "<｜Assistant｜><think>\n",
        "<｜Assistant｜><think>\n",
        "\n</think>\n\n",
        "hm\n</think>\n\nOslo</s>",
    ),
    "deepseek-v3.1": Family(
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜></think>' + m.content + eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% if not thinking %}</think>{% else %}<think>{% endif %}{% endif %}",
        ("<｜User｜>", "<｜Assistant｜>"),
        _THINK,
        {},
        "<｜Assistant｜></think>",
        "<｜Assistant｜><think>",
        "</think>",
        "hm</think>Oslo</s>",
    ),
    "nemotron-nano-2": Family(
        "{% set ns = namespace(on=true, last='') %}{% for m in messages %}{% if '/no_think' in m.content and m.role != 'assistant' %}"
        "{% set ns.on = false %}{% endif %}{% endfor %}{{ '<SPECIAL_10>System\n' }}{% if messages[0].role == 'system' %}"
        "{{ messages[0].content.replace('/no_think', '').strip() }}{% set messages = messages[1:] %}{% endif %}{{ '\n\n' }}"
        "{% if messages[-1].role == 'assistant' %}{% set ns.last = messages[-1].content + '\n<SPECIAL_12>\n\n' %}"
        "{% set messages = messages[:-1] %}{% endif %}{% for m in messages %}{{ '<SPECIAL_11>User\n' + m.content + '\n' }}{% endfor %}"
        "{{ '<SPECIAL_11>Assistant\n' + ('<think>\n\n' if ns.on else '<think></think>') + ns.last }}",
        ("<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>"),
        (),
        {},
        "Assistant\n<think></think>",
        "Assistant\n<think>\n\n",
        "\n</think>\n\n",
        "hm\n</think>\n\nOslo\n<SPECIAL_12>",
    ),
    "gpt-oss": Family(
        "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n\n{% if reasoning_effort is not defined %}"
        "{% set reasoning_effort = 'medium' %}{% endif %}Reasoning: {{ reasoning_effort }}<|end|>{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% if 'thinking' in m and loop.last and not add_generation_prompt %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|constrain|>"),
        (),
        {"reasoning_effort": "low"},
        "<|start|>assistant",
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Oslo<|return|>",
    ),
    "gemma-4": Family(
        "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}{{ '<|turn>system\n<|think|><turn|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{% for part in m.content.split('<channel|>') %}{{ part.split('<|channel>')[0] | trim }}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if not enable_thinking | default(false) %}"
        "{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
        (),
        {},
        "model\n<|channel>thought\n<channel|>",
        "model\n",
        "",
        "<|channel>thought\nhm\n<channel|>Oslo<turn|>",
    ),
    "gemma-4-small": Family(
        "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}{{ '<|turn>system\n<|think|><turn|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{% for part in m.content.split('<channel|>') %}{{ part.split('<|channel>')[0] | trim }}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}",
        ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
        (),
        {},
        "<|turn>model\n",
        "<|turn>model\n",
        "",
        "<|channel>thought\nhm\n<channel|>Oslo<turn|>",
    ),
    "smollm-3": Family(
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}<|im_start|>system\n"
        "Today Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
        "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% else %}"
        "<|im_start|>assistant\n{{ m.content if enable_thinking else '<think>\n\n</think>\n' + m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' if enable_thinking else '<think>\n\n</think>\n' }}{% endif %}",
        _CHATML_TOKENS,
        _THINK,
        {"enable_thinking": False},
        "assistant\n<think>\n\n</think>\n",
        "assistant\n",
        "",
        "<think>\nhm\n</think>\nOslo<|im_end|>",
    ),
    "seed-oss": Family(
        "{% for m in messages %}{{ bos_token + m.role + '\n' }}{% if m.reasoning_content is string %}"
        "{{ '<seed:think>' + m.reasoning_content + '</seed:think>\n' }}{% endif %}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% if thinking_budget is defined and thinking_budget == 0 %}"
        "{{ '<seed:think></seed:think>\n' }}{% endif %}{% endif %}",
        ("<seed:think>", "</seed:think>"),
        (),
        {"thinking_budget": 0},
        "assistant\n<seed:think></seed:think>\n",
        "assistant\n",
        "",
        "<seed:think>hm</seed:think>\nOslo</s>",
    ),
    "kimi-k3": Family(
        "{% macro open(tag) %}{{ '<|open|>' + tag + '<|sep|>' }}{% endmacro %}{% macro close(tag) %}{{ '<|close|>' + tag + '<|sep|>' }}{% endmacro %}"
        "{% if thinking is undefined %}{% set thinking = true %}{% endif %}{% for m in messages %}{{ open('message role=\"' + m.role + '\"') }}"
        "{% if m.role == 'assistant' %}{% if thinking %}{{ open('think') }}{{ m.reasoning_content or '' }}{{ close('think') }}{% endif %}"
        "{{ open('response') }}{{ m.content }}{{ close('response') }}{% else %}{{ m.content }}{% endif %}{{ close('message') + '<|end_of_msg|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ open('message role=\"assistant\"') }}{{ open('think' if thinking else 'response') }}{% endif %}",
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        (),
        {"thinking": False},
        "<|open|>response<|sep|>",
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|><|open|>response<|sep|>",
        "hm<|close|>think<|sep|><|open|>response<|sep|>Oslo<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>",
    ),
}

ONE_OF_TWO = (
    "{% set reasoning_effort = reasoning_effort | default('none') %}{% if reasoning_effort not in ['none', 'high'] %}"
    "{{ raise_exception('none or high') }}{% endif %}{{ bos_token }}[{{ reasoning_effort }}]{% for m in messages %}{{ m.content }}{% endfor %}"
)
"""As Mistral's: it refuses efforts that it doesn't know, and doesn't think by itself."""

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""It knows nothing of thoughts."""

LLAMA = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ bos_token }}Today Date: {{ date_string }}\n"
    + PLAIN
)
"""It prints the date."""


def letters(
    template: str, special: Sequence[str] = _CHATML_TOKENS, added: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template, whose tokens are bytes; `<s>` and `</s>` begin and end a text."""
    alphabet = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    return letters(family.template, family.special, family.added)


def writing(tokenizer: PreTrainedTokenizerFast, text: str, prompt_length: int) -> GPT2LMHeadModel:
    """A tiny GPT-2 that writes a text after a prompt of so many tokens: what comes next depends on the position alone."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return writing_at(dict(enumerate(ids, prompt_length - 1)), tokenizer, ids[-1], positions=512, heads=1)


def writing_at(
    written: Mapping[int, int],
    tokenizer: PreTrainedTokenizerFast,
    eos_token_id: int,
    *,
    positions: int,
    heads: int,
) -> GPT2LMHeadModel:
    """A tiny GPT-2 that writes certain ids after certain positions: position → id."""
    config = GPT2Config(
        vocab_size=320,
        n_positions=positions,
        n_embd=positions,
        n_layer=1,
        n_head=heads,
        n_inner=64,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1e-3)
        model.transformer.wpe.weight.copy_(torch.eye(positions))
        for layer in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.lm_head.weight.zero_()
        for at, index in written.items():
            model.lm_head.weight[index, at] = 1
    return model
