"""The commands `train` and `demo` from end to end, on a tiny random backbone, a real Chroma and a few documents."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from spring_rag.cli.demo import demo, parse_ks
from spring_rag.cli.train import train
from spring_rag.demo import paths, run
from spring_rag.tokens import VirtualTokens

app = typer.Typer()
app.command("train")(train)
app.command("demo")(demo)

FACTS = {"arlo": "Arlo lives in Rome.", "bina": "Bina lives in Oslo.", "cato": "Cato lives in Lima."}
QUESTIONS = [
    {
        "question": f"Where does {name.capitalize()} live?",
        "target": FACTS[name][-5:-1],
        "source": f"{name}.txt",
    }
    for name in FACTS
]


@pytest.fixture(scope="module")
def folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The demo's layout in small, with tokens trained by the command."""
    root = tmp_path_factory.mktemp("demo")
    build_model("llama").save_pretrained(root / "backbone")
    copy.deepcopy(tokenizer).save_pretrained(root / "backbone")
    (root / "documents").mkdir()
    for name, text in FACTS.items():
        (root / "documents" / f"{name}.txt").write_text(text)
    lines = [{**q, "ret_passages": list(FACTS.values())} for q in QUESTIONS]
    (root / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
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
    assert "1 bad lines skipped, 3 examples kept" in result.stderr
    assert result.stdout == f"4 virtual tokens in {root / 'tokens'}\n"
    return root


@pytest.fixture(autouse=True)
def _small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "BACKBONE", folder / "backbone")
    monkeypatch.setattr(paths, "TOKENS", folder / "tokens")
    monkeypatch.setattr(paths, "DOCUMENTS", folder / "documents")
    monkeypatch.setattr(paths, "QUESTIONS", folder / "questions.jsonl")
    monkeypatch.setattr(run, "WORDS", "text, told")  # worked examples take more than the tiny context


def test_trained_tokens_carry_the_options(folder: Path) -> None:
    tokens = VirtualTokens.from_pretrained(folder / "tokens")
    assert tokens.matrix.shape == (4, 32)
    assert tokens.training is not None
    assert tokens.training["recipe"]["k_schedule"] == "sandwich"
    assert tokens.training["data"]["examples"] == 3


def test_demo_prints_one_object(tmp_path: Path) -> None:
    arguments = ["demo", "--db", str(tmp_path / "db"), "--top-k", "1", "--k", "4,0", "--json"]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        found = json.loads(result.stdout)
        assert [row["k"] for row in found["results"]] == [0, 4]
        assert all(row["n"] == 3 for row in found["results"])
        assert found["retrieved"] == 1.0
        assert found["instructed"]["k"] == 0


def test_demo_prints_a_table_and_questions(tmp_path: Path) -> None:
    arguments = ["demo", "--db", str(tmp_path / "db"), "--k", "0,1", "--questions", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "2 questions, 5 passages each" in result.stdout
    assert "exact match" in result.stdout
    assert "Where does Arlo live?" in result.stdout
    assert "expected: Oslo" in result.stdout
    assert "Cato" not in result.stdout


def test_ks_are_whole_numbers() -> None:
    assert parse_ks("50, 0,1,50") == [0, 1, 50]
    for wrong in ("", "1,", "-1", "1.5", "all"):
        with pytest.raises(typer.BadParameter, match="whole numbers"):
            parse_ks(wrong)
