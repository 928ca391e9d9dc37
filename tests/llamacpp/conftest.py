"""Fixtures: models on llama.cpp, which are tiny random ones of several families, the toy, and the default backbone."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import toy_parts
from gguf_parts import write_gguf

from spring_rag import SpringModel


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.llama_cpp)


@pytest.fixture(scope="session", autouse=True)
def _needs_llama_cpp():
    if find_spec("llama_cpp") is None:
        pytest.fail("llama-cpp-python isn't installed here; run these tests with `make test-llama-cpp`")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """A cache of converted files that these tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory, build_model, tokenizer):
    """`make_pair(family, kind="F32", **settings)`: one tiny model on llama.cpp and as transformers runs the same weights."""

    def make(family, kind="F32", seed=0, **settings):
        hf_model = build_model(family, tied=family.startswith("gemma"), seed=seed)
        if family == "gemma3":  # every sixth layer of it sees all tokens, and rotates otherwise
            config = type(hf_model.config)(
                **{**hf_model.config.to_dict(), "num_hidden_layers": 6, "layer_types": None}
            )
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                hf_model = type(hf_model)(config).eval()
        hf_model.generation_config.eos_token_id = 2
        file = tmp_path_factory.mktemp(family) / f"{family}-{kind}.gguf"
        write_gguf(file, hf_model, tokenizer, kind)
        ours = SpringModel.from_pretrained(file, engine="llama.cpp", n_threads=1, **settings)
        if kind != "F32":
            return ours, SpringModel.from_pretrained(file, device="cpu")
        return ours, SpringModel(hf_model, ours.tokenizer)

    return make


@pytest.fixture(scope="session")
def toy_gguf(tmp_path_factory):
    return toy_parts.write_as_gguf(tmp_path_factory.mktemp("toy") / "toy.gguf")
