"""Test virtual tokens in prompts of another layout than they were trained in."""

import warnings
from zlib import crc32

import pytest
import torch
from thinking_parts import LLAMA, PLAIN, letters, writing

from spring_rag.backbone import BackboneRecord
from spring_rag.encoding import encode
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.templates import template_digest
from spring_rag.tokens import VirtualTokens

PASSAGES = ["Arlo lives in Oslo."]


def random_tokens(n, hidden_size=32, seed=0, **about):
    return VirtualTokens(torch.randn(n, hidden_size, generator=torch.Generator().manual_seed(seed)), **about)


@pytest.fixture(scope="module")
def tokenizer():
    return letters(PLAIN)


@pytest.fixture(scope="module")
def backbone(tokenizer):
    length = len(encode(RagPrompt("Where?", PASSAGES), tokenizer).ids)
    return writing(tokenizer, "Oslo</s>", length)


@pytest.fixture
def model_with(backbone, tokenizer):
    def make(seed, **about):
        tokens = random_tokens(
            2, backbone.config.n_embd, seed, backbone=BackboneRecord.of(backbone, "acme/tiny"), **about
        )
        backbone.config.name_or_path = "acme/tiny"
        return SpringModel(backbone, tokenizer, tokens=tokens)

    return make


def ask(model, **template):
    model.generate(RagPrompt("Where?", PASSAGES, RagTemplate(**template)), max_new_tokens=1)


@pytest.mark.parametrize(
    ("about", "used", "words"),
    [
        ({"template": RagTemplate()}, {"chat": True}, "trained in text prompts and are used in a chat"),
        ({"training": {"steps": 1}}, {"chat": True}, "trained in text prompts and are used in a chat"),
        ({"template": RagTemplate(chat=True)}, {}, "trained in chats and are used in a text prompt"),
        (
            {"template": RagTemplate(chat=True), "chat_template": "0" * 16},
            {"chat": True},
            "with another chat template",
        ),
    ],
)
def test_another_layout_is_warned_of_once(model_with, about, used, words, request):
    model = model_with(crc32(request.node.name.encode()), **about)
    with pytest.warns(UserWarning, match=words):
        ask(model, **used)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(model, **used)


@pytest.mark.parametrize(
    ("about", "used"),
    [
        ({"template": RagTemplate()}, {}),
        (
            {"template": RagTemplate(chat=True), "chat_template": template_digest(letters(PLAIN))},
            {"chat": True},
        ),
        ({"template": RagTemplate(), "training": {"recipe": {"chat": 0.3}}}, {"chat": True}),
        ({}, {"chat": True}),
    ],
    ids=["texts", "chats", "both", "unknown"],
)
def test_their_own_layout_needs_no_warning(model_with, about, used, request):
    model = model_with(crc32(request.node.name.encode()), **about)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(model, **used)


def test_nor_do_prompts_without_them(model_with):
    model = model_with(77, template=RagTemplate(chat=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("Where?", max_new_tokens=1)
        model.generate(RagPrompt("Where?", PASSAGES), num_tokens=0, max_new_tokens=1)


def test_an_artifact_keeps_the_digest_of_its_chat_template(tmp_path):
    digest = template_digest(letters(LLAMA))
    random_tokens(2, chat_template=digest, template=RagTemplate(chat=True)).save_pretrained(tmp_path / "a")
    assert VirtualTokens.from_pretrained(tmp_path / "a").chat_template == digest
    assert (
        VirtualTokens.from_pretrained(tmp_path / "a" / "virtual_tokens.safetensors")[:1].chat_template
        == digest
    )
    random_tokens(2).save_pretrained(tmp_path / "b")
    assert VirtualTokens.from_pretrained(tmp_path / "b").chat_template is None
    assert 'chat_template"' not in (tmp_path / "b" / "config.json").read_text()
