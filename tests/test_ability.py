"""What tokens cost without passages: the likelihoods that the benchmark counts are those of the backbone, and of its tokens where they stand."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.model import SpringModel
from spring_rag.tokens import VirtualTokens


@pytest.fixture(scope="module")
def ability() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import ability

        yield ability
        for name in ("ability", "measure", "real_data"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def backend(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> LocalBackend:
    backend = LocalBackend(llama, tokenizer)
    backend.add_tokens("default", VirtualTokens(torch.randn(50, llama.config.hidden_size)))
    return backend


def test_likelihood_of_what_follows(ability: ModuleType, backend: LocalBackend) -> None:
    prompt, target = Encoded((5, 6, 7), 1), (8, 9)
    table = backend.hf_model.get_input_embeddings().weight
    for k in (0, 10):
        rows = backend.tokens().matrix[:k]
        whole = torch.cat([table[[5]], rows, table[[6, 7, 8, 9]]])[None]
        labels = torch.tensor([[-100] * (3 + k) + [8, 9]])
        loss = backend.hf_model(inputs_embeds=whole, labels=labels).loss
        assert ability.log_likelihood(backend, prompt, target, k) == pytest.approx(-2 * loss.item(), rel=1e-4)


def test_measures_are_beside_the_plain_backbone(ability: ModuleType, backend: LocalBackend) -> None:
    english = ability.english(backend, ["Ann is here.", "Bo was there, too."])
    found = {row["k"]: row for row in english["results"]}
    assert set(found) == set(ability.KS)
    assert "beside_plain" not in found[0]["nats_per_token"]
    gain = found[50]["nats_per_token"]["mean"] - found[0]["nats_per_token"]["mean"]
    assert found[50]["nats_per_token"]["beside_plain"]["gain"] == pytest.approx(gain, abs=2e-4)

    choices = ability.choices(SpringModel.from_backend(backend), backend)
    assert choices["questions"] == 40 == len({question for question, _ in ability.CHOICES})
    assert all(len(set(answers)) == 4 for _, answers in ability.CHOICES)
    assert all(0 <= row["right"]["mean"] <= 1 for row in choices["results"])
