"""Find where two answers to one prompt part, and how near a tie that was."""

import torch

from spring_rag import Prompt, RagPrompt, SpringModel
from spring_rag.backends.base import Generation
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded, encode
from spring_rag.splice import splice_batch


def gap(
    local: SpringModel, prompt: RagPrompt | Prompt | str, k: int, mine: Generation, theirs: Generation
) -> float:
    """By how much a model of transformers prefers its own token where another's answer leaves its own, in logits.

    Args:
        local: the model on transformers.
        prompt: that both answer.
        k: number of virtual tokens.
        mine: the answer of `local`.
        theirs: the other one.
    """
    assert isinstance(local.backend, LocalBackend)
    at = next(n for n, (a, b) in enumerate(zip(mine.token_ids, theirs.token_ids, strict=False)) if a != b)
    encoded = encode(prompt, local.tokenizer)
    read = Encoded((*encoded.ids, *mine.token_ids[:at]), encoded.slot)
    rows = local.backend.bank.rows("default", k if encoded.slot is not None else 0)
    batch = splice_batch(local.backend.embedding, [read], [rows])
    with torch.no_grad():
        logits = local.backend.hf_model(inputs_embeds=batch.inputs_embeds, logits_to_keep=1).logits[0, -1]
    return float(logits[mine.token_ids[at]] - logits[theirs.token_ids[at]])
