"""Which prompts may be decoded in one batch, so that no answer depends on its neighbours."""

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from spring_rag.backends.base import GenerationSettings
from spring_rag.backends.decoding import generation_arguments
from spring_rag.encoding import Encoded
from spring_rag.limits import batch_switch, positions_settle
from spring_rag.splice import InputEmbedding, splice_batch

_TRIED_LENGTHS = (12, 3)
_TRIED_STEPS = 2

_alike: WeakKeyDictionary[InputEmbedding, bool] = WeakKeyDictionary()
"""Whether the backbone of these embeddings answers padded rows as it answers them alone, where that was tried."""


def together(
    model: PreTrainedModel, embedding: InputEmbedding, lengths: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Divide rows into batches whose answers are those that each row gets alone.

    Args:
        model: the backbone as `generate` takes it, with dropout off; gradients must be off too.
        embedding: of the backbone.
        lengths: tokens of each row's prompt, virtual ones included.
        max_new_tokens: most tokens of an answer.

    Returns:
        The rows' numbers, each once.

    Raises:
        BackendError: the model's generation_config asks for what can't be done.
    """
    rows = list(range(len(lengths)))
    if len(rows) > 1 and not padded_rows_answer_alike(model, embedding):
        return [[row] for row in rows]
    switch = batch_switch(model.config)
    if switch is None:
        return [rows]
    before = [row for row in rows if lengths[row] + max_new_tokens - 1 <= switch]
    behind = [row for row in rows if lengths[row] > switch and positions_settle(model.config)]
    alone = [[row] for row in rows if row not in before and row not in behind]
    return [some for some in (before, behind, *alone) if some]


def padded_rows_answer_alike(model: PreTrainedModel, embedding: InputEmbedding) -> bool:
    """Whether a model answers a batch of two lengths as it answers its rows one by one; tried out once per model.

    Recurrent states that read padding and positions that are counted from the first column make a difference.

    Args:
        model: the backbone as `generate` takes it, with dropout off; gradients must be off too.
        embedding: of the backbone.

    Raises:
        BackendError: the model's generation_config asks for what can't be done.
    """
    if embedding not in _alike:
        prompts = [
            Encoded(tuple((7 * at + start) % embedding.vocab_size for at in range(length)), None)
            for start, length in enumerate(_TRIED_LENGTHS, 5)
        ]
        batched = _logits(model, embedding, prompts)
        alone = torch.cat([_logits(model, embedding, [prompt]) for prompt in prompts])
        tolerance = 1e-3 if embedding.dtype == torch.float32 else 0.05
        differences, sizes = ((batched - alone).norm(dim=(1, 2)), alone.norm(dim=(1, 2)))
        _alike[embedding] = bool((differences <= tolerance * sizes).all())
    return _alike[embedding]


class _Always(LogitsProcessor):
    """Makes every row go on with token 0, so that all tries read the same."""

    def __call__(self, input_ids: LongTensor, scores: FloatTensor) -> FloatTensor:  # noqa: ARG002
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, 0] = 0
        return cast(FloatTensor, chosen)


def _logits(model: PreTrainedModel, embedding: InputEmbedding, prompts: Sequence[Encoded]) -> Tensor:
    """What a model says to some prompts while it writes, shape `[B, steps, vocab]`, float32; each step's mean is 0."""
    batch = splice_batch(embedding, prompts, [torch.empty(0, embedding.hidden_size)] * len(prompts))
    assert model.generation_config is not None
    settings = GenerationSettings(max_new_tokens=_TRIED_STEPS)
    told = generation_arguments(model.generation_config, settings, frozenset())
    told |= {"return_dict_in_generate": True, "output_logits": True}
    found = cast(Any, model).generate(
        torch.zeros_like(batch.attention_mask),
        inputs_embeds=batch.inputs_embeds,
        attention_mask=batch.attention_mask,
        logits_processor=LogitsProcessorList([_Always()]),
        **told,
    )
    logits = torch.stack([step.float() for step in found.logits], dim=1).nan_to_num(neginf=0.0)
    return logits - logits.mean(dim=-1, keepdim=True)
