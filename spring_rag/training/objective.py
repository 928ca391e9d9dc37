"""The loss of virtual tokens, at the cost of the prompt's suffix.

The context's keys and values are computed once, without a graph, if a trial shows that this gives the gradient of
the plain loss over the whole sequence (`choice`). If not, that plain loss is computed.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from spring_rag.errors import PromptError, TrainingError
from spring_rag.splice import InputEmbedding
from spring_rag.training.choice import proven_way
from spring_rag.training.frozen import frozen
from spring_rag.training.ways import Example


def objective(
    hf_model: PreTrainedModel,
    examples: Sequence[Example],
    matrix: Tensor,
    num_tokens: int | Sequence[int],
    *,
    embedding: InputEmbedding | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the target ids, given context, virtual tokens and question.

    The backbone is used frozen and without dropout, whatever its flags are, and they are restored afterwards. The first call for a
    backbone, and the first with longer examples, tries out how it can be trained.

    Args:
        hf_model: the backbone.
        examples: for each row an encoded prompt with its slot, and the ids of the answer, end of sequence included.
        matrix: `[n, hidden_size]`, in the space of the backbone's embedding table; the loss is differentiable in it.
        num_tokens: k, the number of rows that are used: one for all examples, or one per example.
        embedding: the backbone's `InputEmbedding`, for callers that keep one.

    Returns:
        A float32 scalar on the matrix's device.

    Raises:
        TrainingError: no examples, an empty target, or a k outside 1…n.
        PromptError: a prompt without a slot.
        UnsupportedBackboneError: the backbone can't work from embeddings, or its gradient isn't that of its loss.
    """
    return objectives(hf_model, examples, matrix, [num_tokens], embedding=embedding)[0]


def objectives(
    hf_model: PreTrainedModel,
    examples: Sequence[Example],
    matrix: Tensor,
    num_tokens: Sequence[int | Sequence[int]],
    *,
    embedding: InputEmbedding | None = None,
    among: Sequence[Mapping[int, float]] | None = None,
) -> Tensor:
    """Return `objective` for several ks on the same examples, whose contexts are computed once.

    Args:
        hf_model: the backbone.
        examples: for each row an encoded prompt with its slot, and the ids of the answer, end of sequence included.
        matrix: `[n, hidden_size]`, in the space of the backbone's embedding table; the losses are differentiable in it.
        num_tokens: the ks; each is one for all examples, or a sequence of one per example.
        embedding: the backbone's `InputEmbedding`, for callers that keep one.
        among: for each target id of all examples the ids that it is chosen from, if it is one of a few, each with its share of what
            is right, from 0 to 1. The loss is then that of the choice, and doesn't train which words there are to choose from.

    Returns:
        Losses, float32 `[len(num_tokens)]`, on the matrix's device.

    Raises:
        TrainingError: no examples, an empty target, or a k outside 1…n.
        PromptError: a prompt without a slot.
        UnsupportedBackboneError: the backbone can't work from embeddings, or its gradient isn't that of its loss.
    """
    _check_examples(examples)
    ks = [_per_example(k, len(examples), len(matrix)) for k in num_tokens]
    embedding = embedding or InputEmbedding(hf_model)
    wanted = torch.tensor([i for _, target in examples for i in target], dtype=torch.long)
    with frozen(hf_model):
        way = proven_way(hf_model, embedding, examples, ks)
        losses = [
            _loss(logits.float(), wanted.to(logits.device), among)
            for logits in way(hf_model, embedding, examples, matrix, ks)
        ]
    return torch.stack(losses).to(matrix.device)


def _loss(logits: Tensor, wanted: Tensor, among: Sequence[Mapping[int, float]] | None) -> Tensor:
    """Return the mean cross-entropy of ids `[count]` by logits `[count, vocab]`; with `among`, that of a right choice among its ids."""
    if among is None:
        return functional.cross_entropy(logits, wanted)
    losses = []
    for row, shares in zip(logits, among, strict=True):
        chosen = row[list(shares)]
        right = torch.tensor(list(shares.values()), dtype=chosen.dtype, device=chosen.device)
        losses.append(chosen.logsumexp(0) - (chosen + right.log()).logsumexp(0))
    return torch.stack(losses).mean()


def _check_examples(examples: Sequence[Example]) -> None:
    if not examples:
        msg = "the objective got no examples; give at least one"
        raise TrainingError(msg)
    for number, (encoded, target) in enumerate(examples):
        if encoded.slot is None:
            msg = f"example {number} has no slot, so there is no place for virtual tokens; encode a RagPrompt or a Prompt with a Slot"
            raise PromptError(msg)
        if not len(target):
            msg = f"example {number} has an empty target; give the answer's ids and the end of sequence"
            raise TrainingError(msg)


def _per_example(num_tokens: int | Sequence[int], count: int, rows: int) -> list[int]:
    ks = [num_tokens] * count if isinstance(num_tokens, int) else list(num_tokens)
    if len(ks) != count:
        msg = f"{len(ks)} numbers of virtual tokens for {count} examples; give one, or one per example"
        raise TrainingError(msg)
    for k in ks:
        if not 1 <= k <= rows:
            msg = f"k = {k}: training uses 1 to {rows} virtual tokens (with none there is nothing to train)"
            raise TrainingError(msg)
    return ks
