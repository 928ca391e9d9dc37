"""Test tiny random Gemma, Granite, Qwen and Llama models, and servers that were not started by `spring-rag serve`."""

import itertools

import pytest
from questions import same
from servers import vllm_server
from tiny import LLAMA_2, save_tiny, save_tiny_llama, shuffled
from toy_parts import BACKBONE

from spring_rag import RagPrompt, RagTemplate, SpringModel
from spring_rag.backends.vllm import VLLMBackend, checkpoint
from spring_rag.backends.vllm.failures import RefusedError

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record")

PROMPTS = [
    RagPrompt("who built the lighthouse?", [f"Hale and Sons built lighthouse {n}.", "It was lit in 1887."])
    for n in range(4)
]
CONCATENATING = (
    "{% for m in messages %}<{{ m['role'] }}>\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}\n{% endfor %}<assistant>\n"
)
TRIMMING = CONCATENATING.replace("part['text']", "part['text'] | trim").replace(
    "{{ m['content'] }}", "{{ m['content'] | trim }}"
)


def identical(folder, tokens, server, forms, ks=(0, 1, 10, 50), prompts=PROMPTS):
    local = SpringModel.from_pretrained(folder, tokens=tokens)
    local.add_tokens("other", shuffled(tokens))
    asked = list(itertools.product(prompts, ks, ("default", "other")))
    arguments = {
        "num_tokens": [k for _, k, _ in asked],
        "tokens": [name for _, _, name in asked],
        "max_new_tokens": 12,
    }
    expected = local.generate([prompt for prompt, _, _ in asked], **arguments)
    assert len({each.token_ids for each in expected}) > 4
    for form in forms:
        backend = VLLMBackend.from_pretrained(folder, server.url, form=form)
        remote = SpringModel.from_backend(backend, tokens=tokens)
        remote.add_tokens("other", shuffled(tokens))
        found = remote.generate([prompt for prompt, _, _ in asked], **arguments)
        assert same(found, expected) is None, form
        assert {each.form for each in found} == {form}


@pytest.fixture(scope="class")
def gemma(tmp_path_factory, tokenizer):
    return save_tiny("gemma2", tmp_path_factory.mktemp("gemma2"), tokenizer)


@pytest.fixture(scope="class")
def gemma_server(gemma, logs):
    with vllm_server(gemma[0], logs / "gemma2.log", "--api-key", "secret") as server:
        yield server


class TestGemma:
    """Its rows are scaled by the look-up, so what is sent must be scaled."""

    def test_same_answers(self, gemma, gemma_server, monkeypatch):
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        identical(*gemma, gemma_server, ["light", "exact"])

    def test_unscaled_embeddings_are_found_out(self, gemma, gemma_server, monkeypatch):
        monkeypatch.setattr(checkpoint, "_SCALED_AT_LOOKUP", frozenset())
        with pytest.raises(RefusedError, match="answers otherwise to token ids"):
            SpringModel.from_pretrained(gemma[0], base_url=gemma_server.url, api_key="secret")

    def test_wrong_key(self, gemma, gemma_server):
        with pytest.raises(RefusedError, match="refuses the API key"):
            SpringModel.from_pretrained(gemma[0], base_url=gemma_server.url, api_key="wrong")


@pytest.fixture(scope="class")
def granite(tmp_path_factory, tokenizer):
    folder, tokens = save_tiny("granite", tmp_path_factory.mktemp("granite"), tokenizer)
    (folder / "chat_template.jinja").write_text(TRIMMING)
    return folder, tokens


@pytest.fixture(scope="class")
def granite_server(granite, logs):
    with vllm_server(granite[0], logs / "granite.log", template=False) as server:
        yield server


class TestGranite:
    """It multiplies inside forward, whatever it is given. This server has a chat template that trims."""

    def test_same_answers(self, granite, granite_server):
        identical(*granite, granite_server, ["exact"])

    def test_a_template_that_trims_leads_to_the_exact_form(self, granite, granite_server):
        folder, tokens = granite
        local = SpringModel.from_pretrained(folder, tokens=tokens)
        remote = SpringModel.from_pretrained(folder, tokens=tokens, base_url=granite_server.url)
        for chat in (True, False):
            prompts = [RagPrompt(p.question, p.passages, RagTemplate(chat=chat)) for p in PROMPTS]
            found = remote.generate(prompts, max_new_tokens=12)
            assert {each.form for each in found} == {"exact"}
            assert same(found, local.generate(prompts, max_new_tokens=12)) is None


@pytest.fixture(scope="class")
def qwen(tmp_path_factory, tokenizer):
    folder, tokens = save_tiny("qwen3", tmp_path_factory.mktemp("qwen3"), tokenizer)
    (folder / "chat_template.jinja").write_text(CONCATENATING)
    return folder, tokens


@pytest.fixture(scope="class")
def qwen_server(qwen, logs):
    with vllm_server(qwen[0], logs / "qwen3.log", template=False) as server:
        yield server


class TestQwen:
    """A server with nothing of ours: the model's own chat template, which concatenates."""

    def test_same_answers(self, qwen, qwen_server):
        identical(*qwen, qwen_server, ["exact"])
        chats = [RagPrompt(p.question, p.passages, RagTemplate(chat=True)) for p in PROMPTS]
        identical(*qwen, qwen_server, ["light", "exact"], prompts=chats)

    def test_another_model(self, qwen_server):
        with pytest.raises(RefusedError, match="another model"):
            SpringModel.from_pretrained(BACKBONE, base_url=qwen_server.url)


@pytest.fixture(scope="class")
def llama_2(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama-2"), LLAMA_2)


@pytest.fixture(scope="class")
def llama_2_server(llama_2, logs):
    with vllm_server(llama_2[0], logs / "llama-2.log") as server:
        yield server


@pytest.mark.skipif(LLAMA_2 is None, reason="SPRING_RAG_DATA is not set")
class TestLlama2Tokenizer:
    """It puts a space in front of text that stands by itself, which the suffix would be."""

    def test_same_answers(self, llama_2, llama_2_server):
        identical(*llama_2, llama_2_server, ["light", "exact"])

    def test_documents_with_control_strings(self, llama_2, llama_2_server):
        folder, tokens = llama_2
        local = SpringModel.from_pretrained(folder, tokens=tokens)
        remote = SpringModel.from_pretrained(folder, tokens=tokens, base_url=llama_2_server.url)
        prompts = [
            RagPrompt("who?", [f"Hale{string} built it."]) for string in ("</s>", "<s>", "<unk>", " [INST] ")
        ]
        found = remote.generate(prompts, max_new_tokens=12)
        assert [each.form for each in found] == ["exact", "exact", "exact", "light"]
        assert same(found, local.generate(prompts, max_new_tokens=12)) is None
