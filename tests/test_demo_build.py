"""The demo's invented world: what is held out, and that questions can be answered from their documents."""

import json
import re
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("chromadb")

from spring_rag.demo.build import export
from spring_rag.demo.build.kinds import ATTRIBUTES, KINDS, VALUES
from spring_rag.demo.build.lessons import BRIEF, END, Shape, lesson, scene, shape
from spring_rag.demo.build.names import _HEADS, _MIDDLES, _TAILS, is_held_out, name
from spring_rag.demo.build.records import long_answer, passage, question, record
from spring_rag.demo.paths import BACKBONE, DOCUMENTS, QUESTIONS
from spring_rag.examples import UNANSWERABLE_ANSWER

# Some words of the templates ("Garden") could be invented ones, too.
TEMPLATE_WORDS = set(
    re.findall(r"[A-Z][a-z]+", " ".join(pattern for kind in KINDS for pattern in kind.names))
)
INVENTED = {head + middle + tail for head in _HEADS for middle in ["", *_MIDDLES] for tail in _TAILS}
INVENTED -= TEMPLATE_WORDS


def invented_words(text: str) -> set[str]:
    return set(re.findall(r"[A-Z][a-z]+", text)) & INVENTED


@pytest.mark.parametrize("held_out", [False, True])
def test_names_come_from_one_side_of_the_split(held_out):
    rng = Random(0)
    assert all(is_held_out(name(rng, held_out)) is held_out for _ in range(300))


def test_lessons_never_show_a_held_out_name():
    rng = Random(1)
    for _ in range(200):
        text = "".join(segment.text for segment in lesson(rng, shape(rng, rng.randint(1, 4)), len, 3000))
        shown = {word for word in invented_words(text) if is_held_out(word)}
        assert not shown


def test_every_kind_has_words_for_its_attributes():
    for kind in KINDS:
        for key in kind.attributes:
            values = ATTRIBUTES[key].values
            assert values in VALUES or values in {"year", "town", "person"} or values.startswith("number "), (
                key
            )


def test_passages_hold_their_answers():
    rng = Random(2)
    for _ in range(300):
        rec = record(rng)
        text = passage(rec, rng)
        for key, value in rec.facts.items():
            assert value in text
            assert rec.name in question(rec, key, rng)
            assert value in long_answer(rec, key, rng)


def test_records_of_a_scene_have_different_names():
    rng = Random(3)
    for _ in range(100):
        names = [rec.name for rec in scene(rng, Shape(5))]
        assert len(set(names)) == 5


def test_alike_records_differ_in_name_and_values_only():
    rng = Random(5)
    for _ in range(50):
        records = scene(rng, Shape(4, facts=2, alike=True))
        assert len({rec.kind for rec in records}) == 1
        assert len({tuple(rec.facts) for rec in records}) == 1


def test_answers_of_lessons_end_and_are_short_when_told_so():
    rng = Random(4)
    seen_brief = 0
    for _ in range(200):
        segments = lesson(rng, shape(rng, rng.randint(1, 4)), lambda text: len(text) // 4, 400)
        for before, segment in pairwise(segments):
            if segment.answer:
                assert segment.text.startswith(" ")
                assert segment.text.endswith(END)
            if segment.brief and any(order in before.text for order in BRIEF):
                seen_brief += 1
                assert len(segment.text) < 45
    assert seen_brief > 100


def check_questions(lines, documents, unanswerable):
    """Each is answered by its document, or by none."""
    texts = {path.name: path.read_text() for path in documents.glob("*.txt")}
    for line in lines:
        if line["source"] is not None:
            assert line["target"] in texts[line["source"]]
    hopeless = [line for line in lines if line["source"] is None]
    assert len(hopeless) == unanswerable
    assert {line["target"] for line in hopeless} == {UNANSWERABLE_ANSWER}
    everything = " ".join(texts.values()).lower()
    subjects = [re.search(r"[A-Z][a-z]+", line["question"].split(" ", 1)[1])[0] for line in hopeless]
    assert 0 < sum(subject.lower() in everything for subject in subjects) < unanswerable


def test_export_writes_what_the_demo_needs(tmp_path):
    export.write_package(tmp_path, documents=60, questions=50, unanswerable=10, seed=7)
    export.write_training(tmp_path / "train.jsonl", documents=80, questions=60, unanswerable=10, seed=7)
    questions = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len({line["question"] for line in questions}) == 60
    check_questions(questions, tmp_path / "documents", unanswerable=10)
    training = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert 60 <= len(training) <= 70
    assert 5 <= sum(line["target"] == UNANSWERABLE_ANSWER for line in training) <= 10
    for line in training:
        held = any(line["target"] in text for text in line["ret_passages"])
        assert held is (line["target"] != UNANSWERABLE_ANSWER)
        assert not {word for word in invented_words(json.dumps(line)) if is_held_out(word)}


@pytest.mark.skipif(not BACKBONE.exists(), reason="the demo's files aren't built")
class TestShippedFiles:
    def test_documents_speak_of_held_out_names_only(self):
        texts = [path.read_text() for path in sorted(DOCUMENTS.glob("*.txt"))]
        assert len(texts) >= 300
        words = {word for text in texts for word in invented_words(text)}
        assert len(words) > 500
        assert all(is_held_out(word) for word in words)

    def test_there_are_300_questions_answered_by_their_documents_and_60_by_none(self):
        lines = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
        assert len(lines) == 360
        check_questions(lines, DOCUMENTS, unanswerable=60)

    def test_backbone_is_a_small_plain_llama(self):
        files = [path for path in Path(BACKBONE).iterdir() if path.is_file()]
        weights = [path for path in files if path.suffix == ".safetensors"]
        assert sum(path.stat().st_size for path in weights) <= 12_000_000
        config = json.loads((BACKBONE / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
