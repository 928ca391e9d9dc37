"""Test how prompts become messages: a layout counts only if the server would read the plain prompt's ids from it."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from spring_rag.backends.vllm.layouts import PLACEHOLDER, RAW, ServerTokenizer
from spring_rag.encoding import encode
from spring_rag.prompt import Message, Prompt, RagPrompt, RagTemplate, Slot, Text

DATA = os.environ.get("SPRING_RAG_DATA")
TOKENIZERS = ["llama-2", "mistral-7b-v0.1"]

CONCATENATING = (
    "{% for m in messages %}<{{ m['role'] }}>\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}\n{% endfor %}<assistant>\n"
)
STRING_ONLY = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"


@pytest.fixture(params=["byte-level", *TOKENIZERS])
def any_tokenizer(request, tokenizer):
    if request.param == "byte-level":
        return tokenizer
    if DATA is None:
        pytest.skip("SPRING_RAG_DATA is not set")
    return AutoTokenizer.from_pretrained(Path(DATA, "tokenizers", request.param))


def read(prompt, tokenizer, layout="raw"):
    prompt = prompt.to_prompt() if isinstance(prompt, RagPrompt) else prompt
    encoded = encode(prompt, tokenizer)
    return encoded, getattr(ServerTokenizer(tokenizer), layout)(prompt, encoded)


class TestRaw:
    def test_context_as_text_and_the_rest_as_embeddings(self, any_tokenizer):
        encoded, layout = read(RagPrompt("Who built it?", ["Hale built it.", "Alt."]), any_tokenizer)
        assert layout.before == encoded.context_ids
        assert layout.embedded == encoded.suffix_ids
        assert layout.after == ()
        (message,) = layout.messages
        assert message["name"] == RAW
        assert [part["type"] for part in message["content"]] == ["text", "prompt_embeds"]

    def test_the_suffix_as_text_would_break_the_first_invariant(self):
        if DATA is None:
            pytest.skip("SPRING_RAG_DATA is not set")
        tokenizer = AutoTokenizer.from_pretrained(Path(DATA, "tokenizers/llama-2"))
        alone = tokenizer("Question: who?", add_special_tokens=False).input_ids
        encoded, _ = read(RagPrompt("who?", ["Hale built it."]), tokenizer)
        assert tuple(alone) != encoded.suffix_ids[: len(alone)]

    def test_a_tokenizer_that_was_saved_again(self, tmp_path):
        """transformers writes Llama-2's so that only the text's very start gets a space, and none what follows `<s>`."""
        if DATA is None:
            pytest.skip("SPRING_RAG_DATA is not set")
        AutoTokenizer.from_pretrained(Path(DATA, "tokenizers/llama-2")).save_pretrained(tmp_path)
        encoded, layout = read(RagPrompt("Who?", ["Hale built it."]), AutoTokenizer.from_pretrained(tmp_path))
        assert layout.before == encoded.context_ids

    @pytest.mark.parametrize("string", ["</s>", "<s>", "<unk>", PLACEHOLDER])
    def test_not_with_a_control_string_in_a_document(self, any_tokenizer, string):
        _, layout = read(RagPrompt("Who?", [f"Hale{string} built it."]), any_tokenizer)
        assert layout is None

    def test_a_control_string_in_the_question_is_embedded_as_text(self, any_tokenizer):
        encoded, layout = read(RagPrompt("Who?</s>", ["Hale built it."]), any_tokenizer)
        assert layout.embedded == encoded.suffix_ids
        assert any_tokenizer.eos_token_id not in layout.embedded

    def test_without_context(self, any_tokenizer):
        encoded, layout = read(RagPrompt("Who?", []), any_tokenizer)
        assert layout.before == encoded.context_ids

    def test_without_slot(self, tokenizer):
        assert read(Prompt(parts=(Text("a"),)), tokenizer)[1] is None

    def test_agrees_with_nothing_else(self, tokenizer):
        encoded, layout = read(RagPrompt("Who?", ["Hale."]), tokenizer)
        right = [*encoded.context_ids, *[999] * (3 + len(encoded.suffix_ids))]
        assert layout.agrees(right, 3)
        assert not layout.agrees(right, 2)
        assert not layout.agrees(right[1:], 3)
        assert not layout.agrees([*right[:-1], 5, 6], 3)
        assert not layout.agrees([], 3)

    def test_the_tokenizer_is_left_alone(self, tokenizer):
        size = len(tokenizer)
        ServerTokenizer(tokenizer).probe()
        assert len(tokenizer) == size
        assert PLACEHOLDER not in tokenizer.get_vocab()


@pytest.fixture
def with_template(tokenizer, monkeypatch):
    def set_template(template):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return set_template


CHAT = RagPrompt("Who built it?", ["Hale built it."], RagTemplate(chat=True, system="Be brief."))


class TestTemplated:
    def test_the_end_of_the_message_is_left_to_the_server(self, with_template):
        encoded, layout = read(CHAT, with_template(CONCATENATING), "templated")
        assert layout.before == encoded.context_ids
        assert (*layout.embedded, *layout.after) == encoded.suffix_ids
        assert layout.after
        assert [message["role"] for message in layout.messages] == ["system", "user"]
        assert not layout.is_raw

    def test_a_slot_in_an_earlier_message(self, with_template):
        prompt = Prompt(
            messages=(Message("system", (Text("Hale built it.\n"), Slot())), Message("user", (Text("Who?"),)))
        )
        encoded, layout = read(prompt, with_template(CONCATENATING), "templated")
        assert layout.embedded == ()
        assert layout.after == encoded.suffix_ids

    @pytest.mark.parametrize(
        "template", [STRING_ONLY, CONCATENATING.replace("part['text']", "part['text'] | trim")]
    )
    def test_not_where_the_template_does_otherwise_with_parts(self, with_template, template):
        prompt = RagPrompt("Who?", ["Hale built it."], RagTemplate(chat=True))
        assert read(prompt, with_template(template), "templated")[1] is None

    def test_a_refused_system_message_becomes_the_users(self, with_template):
        refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        encoded, layout = read(CHAT, with_template(refusing + CONCATENATING), "templated")
        assert layout.before == encoded.context_ids
        assert [message["role"] for message in layout.messages] == ["user"]

    def test_not_for_texts(self, with_template):
        assert read(RagPrompt("Who?", ["Hale."]), with_template(CONCATENATING), "templated")[1] is None

    def test_only_the_embeddings_part_is_filled(self, with_template):
        _, layout = read(CHAT, with_template(CONCATENATING), "templated")
        system, user = layout.filled("data")
        assert system == layout.messages[0]
        assert user["content"][-1] == {"type": "prompt_embeds", "data": "data"}
        assert user["content"][0] == layout.messages[1]["content"][0]
