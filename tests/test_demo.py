"""Test the commands `train` and `demo` from end to end, on a tiny random backbone, a real Chroma and a few documents; also `demo` alone."""

import copy
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from chroma_spring_rag import CollectionError, connect_folder, index_files, open_or_create_collection
from spring_rag.cli.demo import demo
from spring_rag.cli.train import train
from spring_rag.demo import paths, run
from spring_rag.tokens import VirtualTokens

app = typer.Typer()
app.command("train")(train)
app.command("demo")(demo)

FACTS = {"arlo": "Arlo lives in Rome.", "bina": "Bina lives in Oslo.", "cato": "Cato lives in Lima."}
QUESTIONS = [
    {
        "id": name,
        "question": f"Where does {name.capitalize()} live?",
        "golden_answers": [text[-5:-1], f"in {text[-5:-1]}"],
        "document": f"{name}.txt",
    }
    for name, text in FACTS.items()
]
UNANSWERABLE = {"id": "dora", "question": "Where does Dora live?", "golden_answers": [], "document": None}


@pytest.fixture(scope="module")
def folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A default backbone and a demo in small, with tokens trained by the command."""
    root = tmp_path_factory.mktemp("demo")
    build_model("llama").save_pretrained(root / "backbone")
    copy.deepcopy(tokenizer).save_pretrained(root / "backbone")
    (root / "documents").mkdir()
    for name, text in FACTS.items():
        (root / "documents" / f"{name}.txt").write_text(text)
    lines = [{**q, "ret_passages": list(FACTS.values())} for q in QUESTIONS]
    (root / "questions.jsonl").write_text("\n".join(map(json.dumps, [*QUESTIONS, UNANSWERABLE])))
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"question": 1}\n')
    arguments = [
        "train",
        "--model",
        root / "backbone",
        "--data",
        root / "train.jsonl",
        "--output",
        root / "tokens",
    ]
    options = [
        "-n",
        "4",
        "--max-steps",
        "3",
        "--batch-size",
        "2",
        "--max-length",
        "200",
        "--k-schedule",
        "sandwich",
    ]

    refused = CliRunner().invoke(app, [*map(str, arguments), *options])
    assert refused.exit_code != 0
    assert "line 4" in str(refused.exception)

    result = CliRunner().invoke(app, [*map(str, arguments), *options, "--skip-bad"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "1 bad line skipped, 3 examples kept" in result.stderr
    assert result.stdout == f"4 virtual tokens in {root / 'tokens'}\n"
    return root


@pytest.fixture
def _small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spring_rag.demo.default.default_backbone", lambda: str(folder / "backbone"))
    monkeypatch.setattr(paths, "TOKENS", folder / "tokens")
    monkeypatch.setattr(paths, "SKILLS", folder / "skills")
    monkeypatch.setattr(paths, "DOCUMENTS", folder / "documents")
    monkeypatch.setattr(paths, "QUESTIONS", folder / "questions.jsonl")
    monkeypatch.setattr(run, "WORDS", "text, told")  # worked examples take more than the tiny context


def test_trained_tokens_carry_the_options(folder: Path) -> None:
    tokens = VirtualTokens.from_pretrained(folder / "tokens")
    assert tokens.matrix.shape == (4, 32)
    assert tokens.training is not None
    assert tokens.training["recipe"]["k_schedule"] == "sandwich"
    assert tokens.training["data"]["examples"] == 3


@pytest.mark.usefixtures("_small")
def test_demo_prints_one_object(tmp_path: Path) -> None:
    arguments = ["demo", "--db", str(tmp_path / "db"), "--top-k", "1", "--k", "4,0", "--json"]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        found = json.loads(result.stdout)
        assert [row["k"] for row in found["results"]] == [0, 4]
        assert all(row["n"] == 4 for row in found["results"])
        assert found["with_answer"]["results"][0]["n"] == 3
        assert found["without_answer"]["results"][0]["n"] == 1
        assert found["retrieved"] == 1.0
        assert found["instructed"]["k"] == 0


@pytest.mark.usefixtures("_small")
def test_demo_prints_a_table_and_questions(tmp_path: Path) -> None:
    arguments = ["demo", "--db", str(tmp_path / "db"), "--k", "0,1", "--questions", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "2 questions, 5 passages each" in result.stdout
    assert "exact match" in result.stdout
    assert "Where does Arlo live?" in result.stdout
    assert "expected: Oslo | in Oslo" in result.stdout
    assert "Cato" not in result.stdout


@pytest.mark.usefixtures("_small")
def test_a_collection_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("My own notes.")
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), run.COLLECTION)
    index_files(collection, [tmp_path / "mine.txt"])
    result = CliRunner().invoke(app, ["demo", "--db", str(tmp_path / "db"), "--k", "0"])
    assert isinstance(result.exception, CollectionError)
    assert "choose another folder with --db" in str(result.exception)
    assert collection.count() == 1


@pytest.mark.usefixtures("_small")
def test_demo_asks_a_sample_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SAMPLE", 1)
    arguments = ["demo", "--db", str(tmp_path / "db"), "--k", "0", "--json"]
    for options, asked in ([], 1), (["--questions", "3"], 3), (["--all"], 4):
        result = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
        assert [row["n"] for row in json.loads(result.stdout)["results"]] == [asked]
    both = CliRunner().invoke(app, [*arguments, "--all", "--questions", "3"])
    assert both.exit_code == 2


@pytest.mark.usefixtures("_small")
def test_what_no_document_answers_is_not_stated() -> None:
    *answerable, last = run.load_questions()
    assert last.answers == ("not stated",)
    assert last.document is None
    assert answerable[0].answers == ("Rome", "in Rome")
    assert answerable[0].document == "arlo.txt"


class TestWhatShips:
    def test_every_question_has_its_document_or_none(self) -> None:
        questions = run.load_questions()
        documents = {path.name: path.read_text("utf-8") for path in paths.DOCUMENTS.iterdir()}
        assert len(questions) == len({each.question for each in questions}) == 300
        assert sum(each.document is None for each in questions) == 60
        assert {each.document for each in questions} - {None} == set(documents)
        assert all(path.suffix in (".md", ".txt") for path in map(Path, documents))
        assert all(150 <= len(text.split()) <= 900 for text in documents.values())

    def test_any_first_questions_are_a_fair_sample(self) -> None:
        records = [json.loads(line) for line in paths.QUESTIONS.read_text("utf-8").splitlines()]
        hashes = [sha256(each["id"].encode()).hexdigest() for each in records]
        assert hashes == sorted(hashes)
        assert 0.1 <= sum(each["document"] is None for each in records[: run.SAMPLE]) / run.SAMPLE <= 0.3

    @pytest.mark.default_backbone
    def test_the_default_backbone_answers(self, tmp_path: Path) -> None:
        arguments = ["demo", "--db", str(tmp_path / "db"), "--questions", "4", "--k", "0,50", "--json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        found = json.loads(result.stdout)
        plain, trained = found["results"]
        assert [plain["n"], trained["n"], found["instructed"]["n"]] == [4, 4, 4]
        assert trained["f1"] > plain["f1"]
        assert trained["answer_tokens"] < plain["answer_tokens"]
