"""Test `spring-rag data`: passages for questions, and questions for passages, on real collections and the toy's backbone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_parts
import pytest
from datasets import Dataset, DatasetDict
from toy_parts import BACKBONE, DOCUMENTS

from chroma_spring_rag import connect_folder, open_collection, open_or_create_collection, read_texts, search
from spring_rag import SpringModel
from spring_rag.data import MAKE_PROMPT, attach, make_pairs
from spring_rag.data.attach import Retriever
from spring_rag.data.examples import RagExample, load_examples, write_examples
from spring_rag.errors import DataError
from spring_rag.evaluation.metrics import contains
from spring_rag.prompt import Message, Prompt

TOWNS = {"Rome": "warm", "Oslo": "cold", "Lima": "foggy", "Bern": "quiet", "Kyiv": "old", "Doha": "hot"}
TEXTS = [f"The town {town} is {how}. Its weather is {how} too." for town, how in TOWNS.items()]
NOTES = [f"A note on the town {town}: nobody knows what it is like." for town in TOWNS]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the collections `documents`, which answers, `notes`, which doesn't, and `records` of the toy."""
    folder = tmp_path_factory.mktemp("data") / "db"
    client = connect_folder(folder, create=True)
    records = [path.read_text().strip() for path in sorted(DOCUMENTS.glob("*.txt"))[:40]]
    for name, texts in (("documents", TEXTS), ("notes", NOTES), ("records", records)):
        collection = open_or_create_collection(client, name)
        collection.add(ids=[str(i) for i in range(len(texts))], documents=texts)
    return folder


@pytest.fixture(scope="module")
def retriever(db: Path) -> Callable[[str], Retriever]:
    """`retriever(name)`: of a collection, real."""
    client = connect_folder(db)

    def make(name: str) -> Retriever:
        collection = open_collection(client, name)
        return lambda questions, top_k: [
            [p.text for p in found] for found in search(collection, questions, top_k)
        ]

    return make


@pytest.fixture(scope="module")
def toy() -> SpringModel:
    return SpringModel.from_pretrained(BACKBONE, device="cpu")


def questions() -> list[RagExample]:
    return [RagExample(f"How is the town {town}?", (how,)) for town, how in TOWNS.items()]


def run(*arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    done = cli_parts.run(*arguments)
    return done.returncode, done.stdout, done.stderr


class TestAttach:
    def test_takes_what_is_found(self, retriever: Callable[[str], Retriever]) -> None:
        done = attach(questions(), [retriever("documents")], top_k=2)
        assert [e.passages[0] for e in done.examples] == TEXTS
        assert all(len(e.passages) == 2 for e in done.examples)
        assert (done.found, done.left_out) == (1.0, [])

    def test_forbids_the_answer(self, retriever: Callable[[str], Retriever]) -> None:
        done = attach(questions(), [retriever("documents")], top_k=3, answer_passage="forbid")
        assert all(len(e.passages) == 3 for e in done.examples)
        golds = [e.answers for e in questions()]
        assert not any(
            contains(p, gold) for e, gold in zip(done.examples, golds, strict=True) for p in e.passages
        )
        assert {e.answers for e in done.examples} == {("not stated",)}
        assert done.found == 0
        with pytest.raises(DataError, match="blank"):
            attach(questions(), [retriever("documents")], answer_passage="forbid", unanswerable_answer=" ")

    def test_guarantees_the_answer_or_leaves_out(self, retriever: Callable[[str], Retriever]) -> None:
        # The notes never answer, the documents always do: in turns, at top 1, the notes come first.
        both = [retriever("notes"), retriever("documents")]
        asked = [*questions(), RagExample("How is the town Rome?", ("made of marzipan",))]
        bare = attach(asked, both, top_k=1, mix="merge")
        assert bare.found == 0
        done = attach(asked, both, top_k=1, mix="merge", answer_passage="guarantee")
        assert [e.passages for e in done.examples] == [(text,) for text in TEXTS]
        assert done.left_out == ["How is the town Rome?"]

    def test_mixes_collections(self, retriever: Callable[[str], Retriever]) -> None:
        both = [retriever("documents"), retriever("notes")]
        drawn = attach(questions() * 4, both, top_k=2, seed=1)
        kinds = [{text in NOTES for text in e.passages} for e in drawn.examples]
        assert all(len(kind) == 1 for kind in kinds)
        assert 4 < sum(kind == {True} for kind in kinds) < 20
        assert attach(questions() * 4, both, top_k=2, seed=1) == drawn
        merged = attach(questions(), both, top_k=2, mix="merge")
        assert [e.passages for e in merged.examples] == list(zip(TEXTS, NOTES, strict=True))

    def test_command(self, db: Path, tmp_path: Path) -> None:
        qa, output = tmp_path / "qa.jsonl", tmp_path / "out" / "train.jsonl"
        lines = [{"id": 1, "question": e.question, "golden_answers": [*e.answers, "x"]} for e in questions()]
        qa.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{bad\n")
        code, out, err = run("data", "attach", "--qa", qa, "--db", db, "--output", output)
        assert (code, out) == (1, "")
        assert "line 7: not JSON" in err
        code, out, _ = run(
            "data", "attach", "--qa", qa, "--db", db, "--output", output, "--top-k", 2, "--skip-bad", "--json"
        )
        assert code == 0
        assert json.loads(out) == {"output": str(output), "examples": 6, "found": 1.0, "left_out": 0}
        examples = load_examples(output).examples
        assert [e.passages[0] for e in examples] == TEXTS
        assert examples[0].answers == ("warm", "x")

    @pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
    def test_the_questions_are_not_overwritten(self, db: Path, tmp_path: Path) -> None:
        qa, link = tmp_path / "qa.jsonl", tmp_path / "link.jsonl"
        write_examples(qa, questions())
        link.symlink_to(qa)
        before = qa.read_bytes()
        for output in (qa, tmp_path / "." / "qa.jsonl", link):
            code, out, err = run("data", "attach", "--qa", qa, "--db", db, "--output", output)
            assert (code, out) == (2, "")
            assert "would be overwritten" in err
        assert qa.read_bytes() == before
        prompt = tmp_path / "prompt.txt"
        prompt.write_text("Ask about {passage}")
        code, _, err = run(
            "data", "make", "--model", BACKBONE, "--db", db, "--prompt", f"@{prompt}", "--output", prompt
        )
        assert code == 2
        assert "would be overwritten" in err

    def test_command_refuses(self, db: Path, tmp_path: Path) -> None:
        qa = tmp_path / "qa.jsonl"
        write_examples(qa, [RagExample("How is it?", ("made of marzipan",))])
        common = ("data", "attach", "--qa", qa, "--output", tmp_path / "o.jsonl")
        for more, expected, said in (
            (("--db", db, "--answer-passage", "guarantee"), 1, "none of 1 questions"),
            (("--db", db, "--collection", "absent"), 1, "absent"),
            (("--db", tmp_path / "nowhere"), 1, "nowhere"),
            ((), 2, "--db"),
        ):
            code, out, err = run(*common, *more)
            assert (code, out) == (expected, ""), err
            assert said in err
            assert "Traceback" not in err
        assert not (tmp_path / "o.jsonl").exists()


class TestMake:
    def test_pairs_survive_the_round_trip(self, toy: SpringModel, db: Path) -> None:
        passages = read_texts(open_collection(connect_folder(db), "records"))[:16]
        made = make_pairs(toy, passages, per_passage=2)
        assert made.asked == 32
        assert len(made.pairs) + sum(made.refused.values()) == 32
        assert len(made.pairs) >= 10
        for pair in made.pairs:
            assert contains(pair.passage, [pair.answer])
            assert not contains(pair.question, [pair.answer])
            assert pair.passage in passages
        assert len({pair.question for pair in made.pairs}) == len(made.pairs)
        assert make_pairs(toy, passages, per_passage=2) == made

    def test_what_the_backbone_writes_is_checked(
        self, monkeypatch: pytest.MonkeyPatch, toy: SpringModel
    ) -> None:
        """The replies are given, since no backbone here misbehaves on demand; the round trip is the real one."""
        passage = "The Crown of Sarben is kept in Galabek. The weight of the Crown of Sarben is 211 grams."
        replies = {
            "**Question:** In which town is the Crown of Sarben kept?\n**Answer:** Galabek.": None,
            "Where is the Crown of Sarben kept?\nAnswer: Galabek": None,
            "It is a crown.": "no question with an answer",
            "Question: What is it?\nAnswer: a violin": "the answer isn't in the passage",
            "Question: Is it kept in Galabek?\nAnswer: Galabek": "the question gives its answer away",
            "Question: What is the weight of the Crown of Sarben?\nAnswer: Galabek": "asked back, it is answered differently",
        }
        genuine = toy.generate
        for reply, reason in replies.items():

            def generate(prompts: Any, reply: str = reply, **settings: Any) -> Any:
                found = genuine(prompts, **settings)
                if isinstance(prompts[0], Prompt):
                    return [
                        type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"text": reply})
                        for one in found
                    ]
                return found

            monkeypatch.setattr(toy, "generate", generate)
            made = make_pairs(toy, [passage])
            assert made.refused == ({reason: 1} if reason else {}), reply
            if not reason:
                assert made.pairs[0].answer == "Galabek"
                assert made.pairs[0].question.startswith(("In which", "Where is"))

    def test_request_takes_the_chat_template_if_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, toy: SpringModel
    ) -> None:
        seen: list[Prompt] = []

        def generate(prompts: Any, **_: Any) -> Any:
            seen.extend(prompts)
            raise KeyboardInterrupt

        monkeypatch.setattr(toy, "generate", generate)
        for chat in (None, False):
            with pytest.raises(KeyboardInterrupt):
                make_pairs(toy, ["A passage </s>."], chat=chat)
        assert seen[0].messages == (Message("user", seen[1].parts),)
        assert [part.trusted for part in seen[1].parts] == [True, False, True]  # type: ignore[union-attr]
        assert seen[1].text == MAKE_PROMPT.format(passage="A passage </s>.")

    def test_refuses(self, toy: SpringModel) -> None:
        with pytest.raises(DataError, match="passage"):
            make_pairs(toy, ["x"], prompt="Write a question.")
        with pytest.raises(DataError, match="no passages"):
            make_pairs(toy, [])

    def test_command(self, db: Path, tmp_path: Path) -> None:
        output = tmp_path / "train.jsonl"
        code, out, err = run(
            *(
                "data",
                "make",
                "--model",
                BACKBONE,
                "--db",
                db,
                "--collection",
                "records",
                "--output",
                output,
            ),
            *("--limit", 20, "--top-k", 3, "--json", "--device", "cpu"),
        )
        assert code == 0, err
        said = json.loads(out)
        examples = load_examples(output).examples
        assert said["examples"] == len(examples) >= 6
        assert len(examples) + sum(said["refused"].values()) == said["asked"] == 20
        assert said["found"] == 1.0
        assert all(1 <= len(e.passages) <= 3 for e in examples)
        assert all(any(contains(p, e.answers) for p in e.passages) for e in examples)

    def test_command_says_what_went_wrong(self, db: Path, tmp_path: Path) -> None:
        common = ("data", "make", "--model", BACKBONE, "--db", db, "--output", tmp_path / "o.jsonl")
        request = tmp_path / "request.txt"
        request.write_text("Repeat: {passage}")
        for more, expected, said in (
            (("--prompt", "no place"), 1, "{passage}"),
            (("--prompt", f"@{request}", "--limit", 2), 1, "none of 2 questions is left"),
            (("--prompt", "@absent.txt"), 2, "absent.txt"),
        ):
            code, out, err = run(*common, *more)
            assert (code, out) == (expected, ""), err
            assert said in err


def test_data_set_on_disk(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "target": ["Ann"], "ret_passages": ["Ann did.", "Or Bea."]},
        {"question": " ", "target": ["x"], "ret_passages": None},
        {"question": "When?", "target": ["1811", "in 1811"], "ret_passages": None},
    ]
    data = Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match='row 2: "question"'):
        load_examples(tmp_path / "one")
    loaded = load_examples(tmp_path / "one", skip_bad=True)
    assert loaded.examples == [
        RagExample("Who?", ("Ann",), ("Ann did.", "Or Bea.")),
        RagExample("When?", ("1811", "in 1811")),
    ]
    DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="splits test, train"):
        load_examples(tmp_path / "two")
    assert len(load_examples(tmp_path / "two" / "test", skip_bad=True).examples) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="save_to_disk"):
        load_examples(tmp_path / "none")
