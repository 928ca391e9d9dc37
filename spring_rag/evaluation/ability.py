"""General ability: with k = 0 the backbone is what it was, logit for logit; and what the tokens cost without passages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import RagExample
from spring_rag.evaluation.runner import Sweep, sweep
from spring_rag.fitting import fit_beside
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt
from spring_rag.splice import evaluating, splice_batch


def plain_difference(model: SpringModel, examples: Sequence[RagExample]) -> float | None:
    """Return the largest difference of a logit between the plain backbone and ours with k = 0, in a call of the same shape.

    Args:
        model: with its virtual tokens attached.
        examples: whose prompts are tried, each alone, with the passages that fit.

    Returns:
        0.0, unless something is wrong; None where the backbone doesn't run in this process.
    """
    backend = model.backend
    if not isinstance(backend, LocalBackend):
        return None
    largest = 0.0
    none = torch.empty(0, backend.hidden_size)
    with torch.no_grad(), evaluating(backend.hf_model):
        for example in examples:
            prompt = RagPrompt(example.question, example.passages, model.template())
            [(_, encoded)] = fit_beside([prompt], backend, [0], 0)
            batch = splice_batch(backend.embedding, [encoded], [none])
            ids = torch.tensor([encoded.ids], device=batch.attention_mask.device)
            plain = backend.hf_model(input_ids=ids, attention_mask=batch.attention_mask).logits
            ours = backend.hf_model(
                inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask
            ).logits
            largest = max(largest, (plain.float() - ours.float()).abs().max().item())
    return largest


def without_passages(
    model: SpringModel,
    examples: Sequence[RagExample],
    count: int,
    ks: Sequence[int],
    **settings: Any,
) -> Sweep:
    """Answer questions from what the backbone knows by itself, as a chat does that retrieves nothing.

    Args:
        model: with its virtual tokens attached.
        examples: the questions; evenly drawn, their passages left out.
        count: most questions.
        ks: numbers of virtual tokens; only the smallest and the largest are used.
        settings: further arguments of `sweep`.
    """
    some = examples[:: -(-len(examples) // count)]
    bare = [replace(example, passages=()) for example in some]
    return sweep(model, bare, sorted({min(ks), max(ks)}), **settings)
