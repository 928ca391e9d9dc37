"""What the tests of tools share: a tiny backbone whose chat template has tools, and which writes what a test tells it to."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from backbone_parts import build
from tool_templates import TEMPLATE
from torch import FloatTensor, LongTensor
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

from spring_rag.model import SpringModel
from spring_rag.prompt import Prompt
from spring_rag.tokens import VirtualTokens


class _Line(LogitsProcessor):
    """Makes a model write certain ids."""

    def __init__(self, ids: list[int], prompt_length: int) -> None:
        self._ids, self._prompt_length = ids, prompt_length

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:
        scores[:] = float("-inf")
        scores[:, self._ids[input_ids.shape[1] - self._prompt_length]] = 0
        return scores


class ScriptedLlama(LlamaForCausalLM):
    """Writes the next of its `lines` in each answer; when there are none left, or where one is None, what its weights say."""

    lines: list[str | None]
    write: Callable[[str], list[int]]

    def generate(self, inputs, *, logits_processor, **arguments):
        line = self.lines.pop(0) if self.lines else None
        if line is not None:
            own = _Line(self.write(line), inputs.shape[1])
            logits_processor = LogitsProcessorList([*logits_processor, own])
        return super().generate(inputs, logits_processor=logits_processor, **arguments)


class Scripted(SpringModel):
    """Remembers the prompts that it answers."""

    prompts: list[Prompt]

    @property
    def lines(self) -> list[str | None]:
        return self.backend.hf_model.lines

    def generate(self, prompts, **settings):
        self.prompts += prompts if isinstance(prompts, list) else [prompts]
        return super().generate(prompts, **settings)

    def stream(self, prompt, **settings):
        self.prompts.append(prompt)
        return super().stream(prompt, **settings)


@pytest.fixture
def scripted(
    tokenizer: PreTrainedTokenizerFast, make_tokens: Callable[..., VirtualTokens]
) -> Callable[..., Scripted]:
    """`scripted(*lines, template=TEMPLATE, special=())`: a tiny Llama with six virtual tokens that writes these lines."""

    def make(*lines: str | None, template: str | None = TEMPLATE, special: tuple[str, ...] = ()) -> Scripted:
        hf_model = build("llama", tied=False, seed=1)
        hf_model.config.max_position_embeddings = 8192
        hf_model.__class__ = ScriptedLlama
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        if special:
            own.add_special_tokens({"additional_special_tokens": list(special)})
        hf_model.lines = list(lines)
        hf_model.write = lambda text: [
            *own.backend_tokenizer.encode(text, add_special_tokens=False).ids,
            own.eos_token_id,
        ]
        with pytest.warns(UserWarning, match="don't record their backbone"):
            model = Scripted(hf_model, own, tokens=make_tokens(6, seed=1))
        model.prompts = []
        return model

    return make
