"""Test the core on a device without float64, such as Apple's GPUs; the CPU stands in for it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.tokens import VirtualTokens
from spring_rag.training import objective

MARK = "_on_device"


class Device(TorchFunctionMode):
    """Takes as lying on the device a model's weights, what is computed from them, and what is made for a `torch.device`.

    A tensor leaves it by `.cpu()` or `.to("cpu")`. Whatever would be float64 on it is refused, in the words of PyTorch's MPS.
    """

    def __init__(self, model):
        super().__init__()
        for weight in (*model.parameters(), *model.buffers()):
            setattr(weight, MARK, True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        found = func(*args, **kwargs)
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in given):
            return found.detach().clone()
        there = any(isinstance(one, torch.device) or getattr(one, MARK, False) for one in given)
        for one in tree_leaves(found):
            if there and isinstance(one, torch.Tensor):
                if one.dtype == torch.float64:
                    msg = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                    raise TypeError(msg)
                setattr(one, MARK, True)
        return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_loads_answers_and_trains(build_model, tokenizer, family):
    model = build_model(family, tied=False)
    record, matrix = BackboneRecord.of(model), torch.randn(4, 32) * 0.3
    encoded = Encoded(tuple(range(5, 45)), 38)
    requests = [Request(encoded, None, k) for k in (0, 1, 4, 4)] * 3 + [Request(Encoded((5, 6), None))]
    with Device(model):
        backend = LocalBackend(model, tokenizer)
        backend.add_tokens("default", VirtualTokens(matrix, backbone=record))
        answers = backend.generate(requests, GenerationSettings(max_new_tokens=20))
        backend.generate(
            requests[:2], GenerationSettings(max_new_tokens=4, temperature=1.0, top_p=0.9, seed=1)
        )
        assert "".join(backend.stream(requests[0], GenerationSettings(max_new_tokens=20, stop=("a",))))
        rows = matrix.clone().requires_grad_()
        objective(model, [(encoded, [7, 8, 2]), (Encoded((5, 6, 7), 2), [9, 2])], rows, 4).backward()
    assert rows.grad.abs().max() > 0
    assert [one.usage.virtual for one in answers[:4]] == [0, 1, 4, 4]


def test_the_device_refuses_float64(build_model):
    model = build_model("llama")
    weight = model.get_input_embeddings().weight
    with Device(model):
        assert weight.detach().cpu().double().dtype == torch.float64
        for compute in (
            lambda: weight.double(),
            lambda: weight[:2].to(torch.float64),
            lambda: (weight * 2).sum(dtype=torch.float64),
            lambda: torch.zeros(2, device=weight.device, dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="float64"):
                compute()
