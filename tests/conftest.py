"""Fixtures: tiny random backbones of every family, and small tokenizers that are trained here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Commands set it, and Chroma refuses a second client in memory whose settings differ.
os.environ.setdefault("ANONYMIZED_TELEMETRY", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker per core, so one thread each; what a test starts inherits it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import toy_parts
from backbone_parts import build
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from spring_rag.demo.default import HUB_ID, INSTALL, default_backbone
from spring_rag.model import SpringModel
from spring_rag.tokens import VirtualTokens

TEXT = [
    "The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons.",
    "Question: who built the lighthouse?\nAnswer: Hale and Sons, in 1887.",
    "[1] A passage about ships and their captains.\n[2] Another passage, of mountains and law books.\n\n",
    "Der Fluß fließt nach Süden; le café est fermé. 東京は大きい。 Привет, мир! 😀🚢",
] * 4
VOCAB_SIZE = 320


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("default_backbone") and default_backbone() == HUB_ID:
        pytest.skip(f"needs the default backbone: {INSTALL}")


@pytest.fixture(autouse=True)
def llama_index_counts_as_before() -> Iterator[None]:
    """`upgrade_engine` changes how LlamaIndex counts tokens everywhere."""
    before = getattr(sys.modules.get("llama_index.core"), "global_tokenizer", None)
    yield
    if (core := sys.modules.get("llama_index.core")) is not None:
        core.global_tokenizer = before  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def build_model() -> Callable[..., PreTrainedModel]:
    """`build_model(family, tied=True, seed=0, dtype=torch.float32)`: a fresh tiny model; see `FAMILIES` for names."""
    return build


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """One tiny Llama for all tests that only read it."""
    return build("llama")


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<s>` in front, as Llama-3 and GPT-2 have it. Ids: `<unk>` 0, `<s>` 1, `</s>` 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """BPE that spells unknown characters in bytes (`<0xE2>`), as Llama-2's and Mistral's do; same ids for control tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    trained.train_from_iterator([line for line in TEXT if line.isascii()], trainer)
    # The trainer knows byte tokens only as control tokens; real tokenizers have them as plain entries of the vocabulary.
    fields = json.loads(trained.to_str())
    vocabulary = fields["model"]["vocab"]
    first = len(vocabulary)
    vocabulary.update({f"<0x{byte:02X}>": first + byte for byte in range(256)})
    fields["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(fields))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., VirtualTokens]:
    """`make_tokens(n, hidden_size=32, seed=0, **kwargs)`: random virtual tokens of the size of the tiny tables' rows."""

    def make(n: int, hidden_size: int = 32, seed: int = 0, **kwargs: object) -> VirtualTokens:
        matrix = torch.randn(n, hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.3
        return VirtualTokens(matrix, **kwargs)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def toy_model() -> SpringModel:
    """The toy with its virtual tokens: it reads simple English and answers from it."""
    return SpringModel.from_pretrained(toy_parts.BACKBONE, tokens=toy_parts.TOKENS, device="cpu")
