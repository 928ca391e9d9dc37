"""Compare the frozen-prefix objective with the plain one over the whole sequence, on every family."""

from typing import Any

import pytest
import torch
from objective_parts import (
    ALL_EMPTY,
    EMPTY,
    EQUAL,
    FAMILIES,
    MIXED,
    SLOT_AT_END,
    assert_right,
    examples_of,
    family,
    plain_loss,
)
from transformers import PreTrainedModel

from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError, TrainingError
from spring_rag.splice import InputEmbedding
from spring_rag.training import objective, objectives


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("shapes", "ks"),
    [
        (MIXED, [4, 4, 4]),
        (MIXED, [1, 6, 3]),
        (EQUAL, [5, 5]),
        (EMPTY, [3, 2]),
        (ALL_EMPTY, [2, 6]),
        (SLOT_AT_END, [1, 2]),
    ],
    ids=["mixed", "mixed-k", "equal", "one-empty", "all-empty", "slot-at-end"],
)
def test_loss_and_gradient_equal_those_of_the_whole_sequence(name: str, shapes: Any, ks: list[int]) -> None:
    model = family(name)
    examples = examples_of(shapes)
    matrix = (torch.randn(6, 16 if name == "opt" else 32) * 0.2).requires_grad_()
    gradient = assert_right(model, examples, ks, matrix, tolerance=1e-5)
    assert not gradient[max(ks) :].any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attention_implementations(name: str, attention: str) -> None:
    model = family(name, attn_implementation=attention)
    examples = examples_of(MIXED)
    matrix = (torch.randn(6, 16 if name == "opt" else 32) * 0.2).requires_grad_()
    gradient = torch.autograd.grad(objective(model, examples, matrix, 6), matrix)[0]
    expected = torch.autograd.grad(plain_loss(model.eval(), examples, matrix, [6, 6, 6]), matrix)[0]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_padding_never_reads_past_a_table_of_positions() -> None:
    model = family("gpt2", n_positions=19)
    examples, matrix = examples_of([(10, 5, 3), (15, 1, 2)]), torch.randn(2, 32)
    loss = objective(model, examples, matrix, 2)
    assert torch.allclose(loss, plain_loss(model.eval(), examples, matrix, [2, 2]), rtol=1e-5)


def test_backbone_keeps_its_flags_and_gets_no_gradient() -> None:
    model = family("gpt2")
    model.transformer.wte.weight.requires_grad_(False)
    model.transformer.h[0].eval()
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    matrix = torch.randn(3, 32, requires_grad=True)
    objective(model, examples_of(MIXED), matrix, 3).backward()
    assert matrix.grad is not None
    assert all(p.grad is None for p in model.parameters())
    assert flags == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])

    def broken(*args: object, **kwargs: object) -> None:
        raise MemoryError

    model.forward = broken
    with pytest.raises(MemoryError):
        objective(model, examples_of(MIXED), matrix, 3, embedding=InputEmbedding(family("gpt2")))
    assert flags == ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()])


def _calls(model: PreTrainedModel) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3"])
def test_several_ks_share_one_context(name: str) -> None:
    model = family(name)
    examples, matrix = examples_of(MIXED), torch.randn(6, 32, requires_grad=True)
    apart = [objective(model, examples, matrix, k) for k in (1, [2, 6, 1], 6)]
    embedding = InputEmbedding(model)
    objectives(model, examples, matrix, [6], embedding=embedding)  # tries out the model
    calls = _calls(model)
    together = objectives(model, examples, matrix, [1, [2, 6, 1], 6], embedding=embedding)
    assert len(calls) == 1 + 3
    assert torch.allclose(together, torch.stack(apart), rtol=1e-6)
    gradient = torch.autograd.grad(together.sum(), matrix)[0]
    expected = torch.autograd.grad(torch.stack(apart).sum(), matrix)[0]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "gpt2", "mpt"])
@pytest.mark.parametrize("shapes", [MIXED, EQUAL, EMPTY], ids=["mixed", "equal", "one-empty"])
def test_questions_about_the_same_passages_share_their_context(name: str, shapes: Any) -> None:
    model, matrix = family(name), torch.randn(6, 32, requires_grad=True)
    examples = examples_of(shapes)
    for (_, target), (encoded, _) in zip(examples_of(shapes, seed=1), examples[:2], strict=False):
        other_question = Encoded(encoded.context_ids + encoded.suffix_ids[::-1] + (7,), encoded.slot)
        examples.append((other_question, target))
    ks = [1 + number % 6 for number in range(len(examples))]
    embedding = InputEmbedding(model)
    objective(model, examples, matrix, ks, embedding=embedding)  # tries out the model
    calls = _calls(model)
    loss = objective(model, examples, matrix, ks, embedding=embedding)
    assert [len(call["inputs_embeds"]) for call in calls] == [len(shapes), len(examples)]
    gradient = torch.autograd.grad(loss, matrix)[0]
    expected = torch.autograd.grad(plain_loss(model.eval(), examples, matrix, ks), matrix)[0]
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_context_needs_no_mask_and_no_graph() -> None:
    model, matrix = family("llama"), torch.randn(6, 32, requires_grad=True)
    embedding = InputEmbedding(model)
    objective(model, examples_of(MIXED), matrix, 6, embedding=embedding)  # tries out the model
    calls = _calls(model)
    loss = objective(model, examples_of(MIXED), matrix, 6, embedding=embedding)
    context, suffix = calls
    assert context.get("attention_mask") is None
    assert suffix["attention_mask"].shape == (3, 31 + 6 + 8)
    assert loss.requires_grad
    calls.clear()
    objective(model, examples_of(EQUAL), matrix, 6, embedding=embedding)
    assert all(call.get("attention_mask") is None for call in calls)


def test_what_cannot_be_trained_is_refused() -> None:
    model, examples, matrix = family("llama"), examples_of(EQUAL), torch.randn(6, 32)
    for k in (0, 7, [3, 0], -1):
        with pytest.raises(TrainingError, match="1 to 6"):
            objective(model, examples, matrix, k)
    with pytest.raises(TrainingError, match="3 numbers of virtual tokens for 2 examples"):
        objective(model, examples, matrix, [1, 2, 3])
    with pytest.raises(TrainingError, match="no examples"):
        objective(model, [], matrix, 1)
    with pytest.raises(TrainingError, match="example 1 has an empty target"):
        objective(model, [examples[0], (examples[1][0], ())], matrix, 1)
    with pytest.raises(PromptError, match="example 0 has no slot"):
        objective(model, [(Encoded((5, 6), None), (7,))], matrix, 1)
