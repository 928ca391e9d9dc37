"""Test the default backbone in four bits, from its package: token ids, answers, and their speed on a context that is kept."""

import ctypes
import json
import os
import time
from pathlib import Path

import pytest

from spring_rag import RagPrompt, SpringModel
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS
from spring_rag.encoding import encode

pytestmark = [
    pytest.mark.default_backbone,
    pytest.mark.filterwarnings("ignore:these virtual tokens were trained on"),
]


@pytest.fixture(scope="module")
def model():
    return SpringModel.from_pretrained(default_backbone(), tokens=TOKENS, engine="llama.cpp")


def texts():
    """Ordinary text: passages and questions of Natural Questions and of XQuAD."""
    data = os.environ.get("SPRING_RAG_DATA")
    if not data:
        pytest.skip("needs real data: SPRING_RAG_DATA")
    found = [
        json.loads(line) for line in (Path(data) / "nq/passages-test.jsonl").read_text("utf-8").splitlines()
    ]
    asked = [json.loads(line) for line in (Path(data) / "nq/test.jsonl").read_text("utf-8").splitlines()]
    articles = json.loads((Path(data) / "xquad/xquad.en.json").read_text("utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [
        *(each["text"] for each in found),
        *(each["question"] for each in asked),
        *(each["context"] for each in paragraphs),
        *(each["question"] for paragraph in paragraphs for each in paragraph["qas"]),
    ]


def test_ids_are_those_of_llama_cpp(model):
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(model.backend._writer._engine._model)
    different = []
    some = texts()
    for text in some:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), False, False)
        if list(ids[:count]) != list(encode(text, model.tokenizer).ids):
            different.append(text)
    assert not different, f"{len(different)} of {len(some)}: {different[:3]}"


def test_answers_from_passages(model):
    passages = ["The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons, of Leith."]
    assert "Hale and Sons" in model.answer("Who built the lighthouse at Grey Point?", passages)
    assert "1887" in model.answer("When was the lighthouse at Grey Point built?", passages)


def test_the_second_question_is_answered_sooner(model):
    passages = [
        f"Passage {number}. " + "The firm of Hale and Sons built lighthouses on many coasts. " * 8
        for number in range(5)
    ]
    seconds = []
    for question in ("Who built them?", "Where were they built?"):
        began = time.perf_counter()
        stream = model.stream(RagPrompt(question, passages, model.template()), max_new_tokens=1)
        assert stream.generation.usage.context > 400
        seconds.append(time.perf_counter() - began)
    assert seconds[1] < 0.5 * seconds[0]
