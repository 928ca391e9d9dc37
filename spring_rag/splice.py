"""Make input embeddings, on the backbone's device, of ids, a slot and virtual tokens."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast
from weakref import WeakSet

import torch
from torch import LongTensor, Tensor, nn
from transformers import PreTrainedModel

from spring_rag.backbone import Table
from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError, TokensError, UnsupportedBackboneError
from spring_rag.tokens import VirtualTokens

_PROBED_ROWS = 64

_proved: "WeakSet[PreTrainedModel]" = WeakSet()
"""Backbones that are known to give the same output for ids and for their embeddings, so that training needn't check at every step."""


def inner_model(backbone: PreTrainedModel) -> Any:
    """Return the model whose signatures show what a backbone takes: PEFT's wrapper passes all its arguments to the model inside."""
    return cast(Any, backbone).get_base_model() if hasattr(backbone, "get_base_model") else backbone


class Embedding(Protocol):
    """What splicing needs of a backbone's input embeddings, in memory or in a file. `InputEmbedding` is that of a loaded model."""

    @property
    def vocab_size(self) -> int:
        """Number of rows of the table; all ids are below it."""

    @property
    def device(self) -> torch.device:
        """Where embeddings are computed."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embeddings."""

    @property
    def scale(self) -> float:
        """Factor from a row of the table to an embedding."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids of shape `[...]`; returns shape `[..., hidden_size]`."""

    def virtual(self, rows: Tensor) -> Tensor:
        """Embed rows in the space of the table, shape `[..., hidden_size]`; returns the same shape."""

    def table(self) -> AbstractContextManager[Table]:
        """Open the embedding table, shape `[vocab, hidden_size]`, for use inside the block."""


class InputEmbedding:
    """A backbone's input embeddings: what turns ids, and virtual tokens, into vectors.

    Virtual tokens are rows in the space of the layer's *table*. Gemma's layer multiplies a row by a constant on the way
    out, so virtual tokens are multiplied too. The constant is found by comparing `layer(ids)` with the table, since running the layer
    itself over virtual tokens fails if `padding_idx` is beyond their number.

    Args:
        backbone: any causal language model of transformers, also quantised or sharded; it is only read.

    Raises:
        UnsupportedBackboneError: it can't work from embeddings; the error names the model's class and the reason.
    """

    vocab_size: int
    """Number of rows of the table; all ids are below it."""
    hidden_size: int
    """Width of a row of the table."""
    device: torch.device
    """Where the embeddings are computed; for a sharded model the device of its first part."""
    dtype: torch.dtype
    """Dtype of the layer's output."""
    scale: float
    """Factor from a row of the table to the layer's output; a number that `dtype` can hold."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._family = type(backbone).__name__
        self._layer = self._find_layer(backbone)
        hook = getattr(self._layer, "_hf_hook", None)
        weight = cast(Tensor, self._layer.weight)
        self.vocab_size, self.hidden_size = weight.shape
        self.device = (
            torch.device(getattr(hook, "execution_device", "meta")) if weight.is_meta else weight.device
        )
        ids, out, self.scale = self._find_scale()
        self.dtype = out.dtype
        if backbone not in _proved:
            self._prove(backbone, ids)
            _proved.add(backbone)

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids by the layer itself.

        Args:
            ids: shape `[...]`, int64, any device.

        Returns:
            Shape `[..., hidden_size]` in `dtype` on `device`, without gradient, because the backbone is frozen.
        """
        with torch.no_grad():
            return cast(Tensor, self._layer(ids.to(self.device)))

    def virtual(self, rows: Tensor) -> Tensor:
        """Embed virtual tokens as the layer would embed rows of its table.

        Args:
            rows: shape `[..., hidden_size]`, any float dtype and device.

        Returns:
            Shape `[..., hidden_size]` in `dtype` on `device`; differentiable.
        """
        return rows.to(self.device, self.dtype) * self.scale

    @contextmanager
    def table(self) -> Iterator[Tensor]:
        """Open the embedding table, shape `[vocab, hidden_size]`; an offloaded one is loaded inside the block.

        Raises:
            UnsupportedBackboneError: the model is on the meta device, without any weights.
        """
        if not cast(Tensor, self._layer.weight).is_meta:
            yield cast(Tensor, self._layer.weight)
            return
        if not hasattr(self._layer, "_hf_hook"):
            reason = "its weights are on the meta device; load them first"
            raise self._unsupported(reason)
        from accelerate.utils import align_module_device  # installed, or no hook

        with align_module_device(self._layer):
            yield cast(Tensor, self._layer.weight)

    def _find_layer(self, backbone: PreTrainedModel) -> nn.Module:
        if backbone.config.is_encoder_decoder:
            reason = (
                "it is an encoder with a decoder; expected a causal language model, which is a decoder alone"
            )
            raise self._unsupported(reason)
        try:
            layer = backbone.get_input_embeddings()
        except NotImplementedError:
            layer = None
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
            reason = "it has no input embedding layer with a table of one row per token"
            raise self._unsupported(reason)
        if not weight.is_floating_point():
            reason = "its embedding table is packed; quantise the model without its embeddings"
            raise self._unsupported(reason)
        if "inputs_embeds" not in inspect.signature(inner_model(backbone).forward).parameters:
            reason = "its `forward` takes no `inputs_embeds`"
            raise self._unsupported(reason)
        config = backbone.config.get_text_config(decoder=True)
        # Gemma 4 finds ids from their embeddings, so a trial would pass; a virtual token has no id to find.
        if getattr(config, "hidden_size_per_layer_input", 0):
            reason = "every layer of it reads the token ids, and a virtual token has none"
            raise self._unsupported(reason)
        return layer

    def _find_scale(self) -> tuple[Tensor, Tensor, float]:
        """Compare some rows with the layer's output; return the ids compared, their embeddings and the scale."""
        with self.table() as table, torch.no_grad():
            count = table.shape[0]
            ids = torch.linspace(0, count - 1, min(count, _PROBED_ROWS), dtype=torch.float64).long()
            rows = table[ids.to(table.device)].cpu().double()  # float64 is compared on the CPU: MPS has none
        present = (rows != 0).any(dim=-1)  # rows of padding_idx are zero and fit any scale
        if not present.any():
            reason = "its embedding table holds only zeros; load its weights first"
            raise self._unsupported(reason)
        ids, rows = ids[present], rows[present]
        if not rows.isfinite().all():
            reason = "its embedding table holds numbers that aren't finite; save or download it again"
            raise self._unsupported(reason)
        out = self.embed(ids)
        if out.shape != rows.shape:
            reason = f"its embedding layer turns rows of {rows.shape[-1]} into {tuple(out.shape[1:])}"
            raise self._unsupported(reason)
        found = out.cpu().double()
        # Least squares comes closer to the true constant than half a step of `dtype`, so rounding makes it exact.
        scale = ((found * rows).sum() / rows.square().sum()).to(out.dtype).double()
        step = torch.finfo(out.dtype).eps
        if not torch.allclose(found, rows * scale, rtol=4 * step, atol=4 * step * float(found.abs().mean())):
            reason = "its embedding layer does more than multiply a row of its table by a constant"
            raise self._unsupported(reason)
        return ids, out, scale.item()

    def _prove(self, backbone: PreTrainedModel, ids: Tensor) -> None:
        """Check that the model needs only embeddings (some models route or hash by ids), and that no token depends on later ones."""
        pair = torch.stack([ids[[0, 1]], ids[[0, -1]]]).to(self.device) if len(ids) > 1 else ids[None]
        with evaluating(backbone), torch.no_grad():
            try:
                expected = backbone(input_ids=pair).logits.float()
            except Exception as error:
                reason = f"it fails on two tokens: {error}"
                raise self._unsupported(reason) from error
            try:
                found = backbone(inputs_embeds=self.embed(pair)).logits.float()
            except Exception as error:
                reason = f"it fails on embeddings without ids: {error}"
                raise self._unsupported(reason) from error
        size = float(expected.abs().nan_to_num().max())
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * size, equal_nan=True):
            reason = "it answers otherwise from the embeddings of ids than from the ids themselves"
            raise self._unsupported(reason)
        # Half precision may round two rows of one batch differently.
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.05
        if not torch.allclose(found[0, 0], found[-1, 0], rtol=0.0, atol=tolerance * size, equal_nan=True):
            reason = "what it makes of a token depends on those that follow; expected a causal language model"
            raise self._unsupported(reason)

    def _unsupported(self, reason: str) -> UnsupportedBackboneError:
        return UnsupportedBackboneError(f"{self._family} can't take virtual tokens: {reason}")


class TokenBank:
    """Sets of virtual tokens side by side in one small matrix, on the embeddings' device and in their dtype.

    Args:
        embedding: the input embeddings of the backbone that the sets are for.
        model_id: Hub id or path of the backbone, if it has one.
        quantization: how the backbone is quantised, if `spring_rag.backbone.quantization_of` finds it in its config.
        turn: held while the embedding table is read, because reading loads an offloaded table.
    """

    def __init__(
        self,
        embedding: Embedding,
        *,
        model_id: str | None = None,
        quantization: str | None = None,
        turn: "threading.Lock | None" = None,
    ) -> None:
        self._embedding = embedding
        self._model_id, self._quantization = model_id, quantization
        self._turn = turn or threading.Lock()
        self._sets: dict[str, tuple[VirtualTokens, Tensor]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    def __iter__(self) -> Iterator[str]:
        """Yield the sets' names, in the order in which they were added."""
        return iter(tuple(self._sets))

    def __getitem__(self, name: str) -> VirtualTokens:
        """Return the set of that name.

        Raises:
            TokensError: there is none; the error lists those attached.
        """
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[VirtualTokens, Tensor]:
        sets = self._sets  # other threads may replace this dict, but never change it
        if name not in sets:
            msg = f"no virtual tokens are attached as {name!r}; attached: {', '.join(map(repr, sets)) or 'none'}"
            raise TokensError(msg)
        return sets[name]

    def add(self, name: str, tokens: VirtualTokens) -> None:
        """Add a set under a name, in place of any that has this name.

        Args:
            name: what requests call the set.
            tokens: virtual tokens that were trained on this backbone.

        Raises:
            BackboneMismatchError: the set belongs to another backbone.
        """
        with self._turn:
            with self._embedding.table() as table:
                tokens.check(table, self._model_id, self._quantization)
            sets = {known: each for known, (each, _) in self._sets.items() if known != name} | {name: tokens}
            matrix = torch.cat([each.in_table_space(self._embedding.scale) for each in sets.values()])
            parts = torch.split(
                matrix.to(self._embedding.device, self._embedding.dtype),
                [len(each) for each in sets.values()],
            )
            self._sets = {
                known: (each, rows) for (known, each), rows in zip(sets.items(), parts, strict=True)
            }

    def rows(self, name: str, k: int | None = None) -> Tensor:
        """Return the first k rows of a set (all for None): a view, shape `[k, hidden_size]`, before any scaling.

        Raises:
            TokensError: there is no such set, or it has fewer than k rows.
        """
        tokens, rows = self._find(name)
        available = len(tokens)
        k = available if k is None else k
        if not 0 <= k <= available:
            msg = f"num_tokens is {k}; the virtual tokens {name!r} allow 0 to {available}"
            raise TokensError(msg)
        return rows[:k]


@dataclass(frozen=True, slots=True)
class SplicedBatch:
    """The inputs of a backbone's forward, on the device of its input embeddings, all padded on the left.

    Attributes:
        inputs_embeds: shape `[B, L, hidden_size]`, in the backbone's dtype.
        attention_mask: shape `[B, L]`, int64; 0 on padding.
        position_ids: shape `[B, L]`, int64; counted from the first token that isn't padding, 0 on padding.
    """

    inputs_embeds: Tensor
    attention_mask: LongTensor
    position_ids: LongTensor


def splice_batch(embedding: Embedding, encoded: Sequence[Encoded], rows: Sequence[Tensor]) -> SplicedBatch:
    """Embed prompts and put virtual tokens into their slots.

    Args:
        embedding: the backbone's input embeddings.
        encoded: B prompts.
        rows: for each prompt its virtual tokens, shape `[k, hidden_size]`, in the space of the table, k ≥ 0; any float
            dtype and device. k may differ from prompt to prompt. Gradients flow back to them.

    Raises:
        PromptError: virtual tokens for a prompt without a slot, a prompt with neither ids nor virtual tokens, or an id that the
            backbone doesn't have.
    """
    lengths = [len(prompt.ids) + len(virtual) for prompt, virtual in zip(encoded, rows, strict=True)]
    longest = max(lengths)
    ids: list[list[int]] = []
    mask: list[list[int]] = []
    places: list[tuple[int, int]] = []
    for row, (prompt, virtual, length) in enumerate(zip(encoded, rows, lengths, strict=True)):
        check_prompt(row, prompt, len(virtual), embedding.vocab_size)
        slot = len(prompt.ids) if prompt.slot is None else prompt.slot
        # The filler, for padding and for what virtual tokens replace, is a token of the prompt itself, so the model can read it.
        filler = prompt.ids[0] if prompt.ids else 0
        padding = longest - length
        ids.append([filler] * padding + [*prompt.ids[:slot], *[filler] * len(virtual), *prompt.ids[slot:]])
        mask.append([0] * padding + [1] * length)
        places += [(row, padding + slot + i) for i in range(len(virtual))]
    inputs_embeds = embedding.embed(torch.tensor(ids))
    if places:
        index = torch.tensor(places, device=embedding.device).unbind(dim=1)
        virtual_rows = torch.cat([embedding.virtual(virtual) for virtual in rows if len(virtual)])
        inputs_embeds = inputs_embeds.index_put(index, virtual_rows)
    attention_mask = torch.tensor(mask, device=embedding.device)
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)  # as transformers' generate derives them
    return SplicedBatch(inputs_embeds, cast(LongTensor, attention_mask), cast(LongTensor, position_ids))


def check_prompt(row: int, prompt: Encoded, virtual: int, vocab_size: int) -> None:
    """Check that a backbone can read a prompt.

    Args:
        row: the prompt's number, for messages.
        prompt: the encoded prompt.
        virtual: number of virtual tokens that go into it.
        vocab_size: number of rows of the embedding table; the backbone's ids are below it.

    Raises:
        PromptError: virtual tokens for a prompt without a slot, a prompt with neither ids nor virtual tokens, or an id that the
            backbone doesn't have.
    """
    if not prompt.ids and not virtual:
        msg = f"prompt {row} is empty: it has no tokens at all"
        raise PromptError(msg)
    if virtual and prompt.slot is None:
        msg = f"prompt {row} has no slot for its {virtual} virtual tokens"
        raise PromptError(msg)
    if prompt.ids and max(prompt.ids) >= vocab_size:
        msg = (
            f"prompt {row} holds token id {max(prompt.ids)}, but the backbone embeds ids below {vocab_size}: "
            "this tokenizer belongs to another model"
        )
        raise PromptError(msg)


@contextmanager
def evaluating(backbone: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block, and restore its own mode afterwards."""
    training = [module for module in backbone.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
