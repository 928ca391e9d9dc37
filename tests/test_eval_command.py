"""Test `spring-rag eval` and its report, on a tiny random backbone, FlashRAG's layout and a real Chroma."""

import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from errno import ENOSPC
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import typer
from thinking_parts import FAMILIES, tokenizer_of, writing
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection
from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.cli.eval import _ks, evaluate
from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode
from spring_rag.errors import DataError, TokensError
from spring_rag.evaluation import plain_difference, sweep
from spring_rag.evaluation.datasets import load_dataset
from spring_rag.evaluation.pages import write_report
from spring_rag.evaluation.report import cut_short
from spring_rag.evaluation.study import DatasetSweeps, Study, merged
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.tokens import VirtualTokens

app = typer.Typer()
app.command()(evaluate)

FACTS = ["Arlo lives in Rome.", "Bina | lives in Oslo.", "<b>Cato</b> lives in Lima."]
QUESTIONS = [f"Where does {fact.split()[0]} live?" for fact in FACTS]


@pytest.fixture(scope="module")
def folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    make_tokens: Callable[..., VirtualTokens],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A backbone, two sets of virtual tokens, a file of questions and a folder in FlashRAG's layout."""
    root = tmp_path_factory.mktemp("eval")
    model = build_model("llama")
    model.save_pretrained(root / "backbone")
    copy.deepcopy(tokenizer).save_pretrained(root / "backbone")
    record = BackboneRecord.of(model, str(root / "backbone"))
    for name, n, seed in (("four", 4, 0), ("six", 6, 1)):
        make_tokens(n, seed=seed, backbone=record).save_pretrained(root / name)
    own = [
        {"question": q, "target": f.split()[-1][:-1], "ret_passages": FACTS}
        for q, f in zip(QUESTIONS, FACTS, strict=True)
    ]
    (root / "own.jsonl").write_text("\n".join(map(json.dumps, own)))
    (root / "nq").mkdir()
    (root / "nq" / "test.jsonl").write_text(
        "\n".join(
            json.dumps({"id": f"test_{i}", "question": one["question"], "golden_answers": [one["target"], "nowhere"], "metadata": {}})
            for i, one in enumerate(own)
        )
    )  # fmt: skip
    (root / "documents").mkdir()
    for i, fact in enumerate(FACTS):
        (root / "documents" / f"{i}.txt").write_text(fact)
    index_files(
        open_or_create_collection(connect_folder(root / "db", create=True), "documents"), [root / "documents"]
    )
    return root


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments), "--max-new-tokens", "6"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


class Page(HTMLParser):
    """Checks that every element is closed, and collects texts and what is fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.texts, self.fetched = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_answers_that_were_cut_while_thinking_are_told_apart(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("deepseek-r1")
    example = RagExample("Where?", ("Oslo",), ("Arlo lives in Oslo.",))
    template = RagTemplate(chat=True)
    length = len(encode(RagPrompt(example.question, example.passages, template), tokenizer).ids)
    model = SpringModel(writing(tokenizer, FAMILIES["deepseek-r1"].written, length), tokenizer)
    cut = sweep(model, [example], [0], max_new_tokens=2)
    assert cut.runs[0].to_dict()["cut_while_thinking"] == 1.0
    assert cut_short(cut) == [
        "1 of 1 answers of k = 0 were cut while the backbone was thinking, so they hold no answer: raise --max-new-tokens, or turn "
        "thinking off (--no-thinking)."
    ]
    study = Study((DatasetSweeps("one", (cut,)),), (None,))
    write_report(study, tmp_path, {})
    for name in ("report.md", "report.html"):
        assert (
            "1 of 1 answers of k = 0 were cut while the backbone was thinking"
            in (tmp_path / name).read_text()
        )
    whole = sweep(model, [example], [0], max_new_tokens=20)
    assert whole.runs[0].answers[0].exact_match == 1
    assert cut_short(whole) == []
    assert "cut_while_thinking" not in whole.runs[0].to_dict()


def test_report_and_json(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    out = run(
        "--tokens",
        folder / "four",
        "--data",
        folder / "own.jsonl",
        "--passages",
        "3,1",
        "--timed",
        "2",
        "--without-passages",
        "1",
        "--report",
        report,
        "--json",
    )
    found = json.loads(out)
    assert [row["k"] for row in found["results"]] == [0, 1, 4]
    assert found["instructed"]["way"] in [row["way"] for row in found["words"]]
    assert found["words"][0]["n_dev"] == 1
    assert found["without_passages"]["results"][1]["k"] == 4
    assert found["retrieved"] == 1.0
    assert found["largest_difference_of_logits_at_k_0"] == 0.0
    assert [one["passages"] for one in found["passages"]] == [1, 3]
    for row in found["results"]:
        assert row["exact_match_interval"][0] <= row["exact_match"] <= row["exact_match_interval"][1]
        assert row["answers_per_second"] > 0
        assert row["n"] == 2
    assert "beside_plain" not in found["results"][0]
    assert 0 < found["results"][2]["beside_plain"]["f1"]["p"] <= 1

    assert {path.name for path in report.iterdir()} == {
        "report.md", "report.html", "results.json", "answers.jsonl", "score-over-k.svg", "score-over-passages.svg"
    }  # fmt: skip
    assert json.loads((report / "results.json").read_text())["results"] == found["results"]
    answers = [json.loads(line) for line in (report / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 2 * 4
    assert {one["passages"] for one in answers} == {1, 3}
    mean = sum(one["exact_match"] for one in answers if one["k"] == 4 and one["passages"] == 3) / 2
    assert mean == pytest.approx(found["results"][2]["exact_match"], abs=1e-4)

    page = Page((report / "report.html").read_text())
    assert page.fetched == []
    assert "Where does <b>Cato</b> live?" in page.texts
    assert f"k = 0, in words ({found['instructed']['way']})" in page.texts
    assert "Best words" in page.texts
    assert "Without passages" in page.texts
    markdown = (report / "report.md").read_text()
    assert "![score-over-k](score-over-k.svg)" in markdown
    assert "<b>" not in markdown
    for table in markdown.split("\n\n"):
        rows = [line.replace(r"\|", "") for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, table


def test_several_sets_and_folders(folder: Path) -> None:
    sets = ["--tokens", folder / "four", "--tokens", folder / "six"]
    data = ["--data", folder / "nq", "--data", folder / "nq", "--db", folder / "db", "--top-k", "1"]
    found = json.loads(run(*sets, *data, "--k", "0,2,6", "--instruction", "", "--json"))
    assert "instructed" not in found
    assert [(row["k"], Path(row.get("tokens", "-")).name) for row in found["results"]] == [
        (0, "-"),
        (2, "four"),
        (2, "six"),
        (6, "six"),
    ]
    assert [part["name"] for part in found["datasets"]] == ["nq", "nq (2)"]
    assert found["results"][1]["n"] == 6
    assert found["retrieved"] == 1.0


def test_table_for_people(folder: Path) -> None:
    out = run("--tokens", folder / "six", "--data", folder / "own.jsonl", "--k", "0,6", "--limit", "2")
    assert "own: 1 question, all passages" in out
    assert "chosen on 1 other question:" in out
    assert "answers/s" not in out
    assert "k = 6 beside k = 0: exact match" in out


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (["--k", "0,7"], TokensError, "asks for 7 virtual tokens, but there are 6"),
        (["--passages", "1,9"], DataError, "asks for 9, but no question has more than 3"),
        (["--data", "nq", "--split", "dev"], DataError, "no split 'dev'.*splits there: test"),
        (["--data", "nowhere.jsonl"], DataError, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said(
    folder: Path, arguments: list[str], error: type[Exception], match: str
) -> None:
    given = [str(folder / one) if one in ("nq", "nowhere.jsonl") else one for one in arguments]
    data = [] if "--data" in given else ["--data", folder / "own.jsonl"]
    with pytest.raises(error, match=match):
        run("--tokens", folder / "six", *data, *given)


@pytest.mark.parametrize(
    "arguments", [[], ["--data", "x", "--k", "a"], ["--data", "x", "--passages", "0,-1"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_without_tokens_the_plain_backbone_is_scored(folder: Path) -> None:
    found = json.loads(run("--model", folder / "backbone", "--data", folder / "own.jsonl", "--json"))
    assert [row["k"] for row in found["results"]] == [0]


def test_limit_and_names(folder: Path) -> None:
    dataset = load_dataset(folder / "nq", limit=2)
    assert (dataset.name, len(dataset.examples), dataset.examples[0].answers) == (
        "nq",
        2,
        ("Rome", "nowhere"),
    )
    assert load_dataset(folder / "own.jsonl").name == "own"
    rows = [{"question": "Who?", "target": "Ann", "ret_passages": ["Ann did."]}]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    saved = load_dataset(folder / "saved")
    assert (saved.name, saved.examples) == ("saved", (RagExample("Who?", ("Ann",), ("Ann did.",)),))


@pytest.fixture(scope="module")
def model(folder: Path) -> SpringModel:
    return SpringModel.from_pretrained(folder / "backbone", tokens=folder / "six")


def test_k_0_is_the_plain_backbone(model: SpringModel, folder: Path) -> None:
    examples = load_dataset(folder / "own.jsonl").examples
    assert plain_difference(model, examples) == 0.0
    handle = model.backend.hf_model.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args, kwargs: (
            (args, {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] + 1e-3})
            if kwargs.get("inputs_embeds") is not None
            else None
        ),
        with_kwargs=True,
    )
    found = plain_difference(model, examples)
    handle.remove()
    assert found is not None
    assert found > 0


def test_dev_is_taken_where_there_is_no_test(tmp_path: Path) -> None:
    (tmp_path / "hotpotqa").mkdir()
    line = json.dumps({"question": "Who?", "golden_answers": ["Ann"]})
    for split in ("train", "dev"):
        (tmp_path / "hotpotqa" / f"{split}.jsonl").write_text(f"{line}\n" * len(split))
    assert len(load_dataset(tmp_path / "hotpotqa").examples) == 3
    with pytest.raises(DataError, match="no split 'test'"):
        load_dataset(tmp_path / "hotpotqa", "test")


def test_a_report_that_cannot_be_written_is_found_before_any_answer(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = ["--model", str(folder / "missing"), "--data", str(folder / "own.jsonl")]
    found = CliRunner().invoke(app, [*arguments, "--report", str(tmp_path / "file" / "report")])
    assert isinstance(found.exception, NotADirectoryError)
    assert (tmp_path / "file").read_text() == "mine"


def test_k_0_is_compared_on_what_fits(
    folder: Path, build_model: Callable[..., PreTrainedModel], model: SpringModel
) -> None:
    gpt2 = SpringModel.from_backend(LocalBackend(build_model("gpt2"), model.tokenizer))
    gpt2.add_tokens("default", VirtualTokens(torch.ones(2, 32)))
    long = RagExample("Who?", ("Ann",), ("Long words. " * 10,) * 9)
    assert plain_difference(gpt2, [long]) == 0.0


def test_every_set_is_tried_with_all_its_tokens(model: SpringModel) -> None:
    other = SpringModel.from_backend(model.backend)
    other.add_tokens("four", VirtualTokens(torch.ones(4, model.backend.hidden_size)))
    assert _ks(other, ["default", "four"], None) == [0, 1, 4, 5, 6]


def test_all_ways_see_the_same_passages(model: SpringModel) -> None:
    """The context holds 256 tokens; beside 6 virtual tokens a passage less fits than beside none."""
    passage = "law books and ships, " * 3
    kept = [_contexts(model, RagExample("Who?", ("Ann",), (passage + "x" * i,) * 9)) for i in range(20)]
    assert any(separate[0] != separate[1] for separate, _ in kept)
    assert all(together[0] == together[1] for _, together in kept)


def _contexts(model: SpringModel, example: RagExample) -> tuple[list[int], list[int]]:
    """Tokens of the context for k = 0 and k = 6, asked apart and together."""
    seen: list[int] = []
    generate = model.backend.generate

    def watch(requests, settings):
        seen.extend(len(one.encoded.context_ids) for one in requests)
        return generate(requests, settings)

    model.backend.generate = watch  # type: ignore[method-assign]
    try:
        for ks in ([0], [6], [0, 6]):
            sweep(model, [example], ks, max_new_tokens=1)
    finally:
        model.backend.generate = generate  # type: ignore[method-assign]
    return seen[:2], seen[2:]


def test_sets_keep_their_own_templates(folder: Path) -> None:
    model = SpringModel.from_pretrained(folder / "backbone", tokens=folder / "four")
    other = VirtualTokens.from_pretrained(folder / "six")
    layout = RagTemplate(question="Q: {question}\nA:")
    model.add_tokens("own", folder / "four")
    model.add_tokens("other", VirtualTokens(other.matrix, backbone=other.backbone, template=layout))
    example = RagExample("Who?", ("Ann",), ("Ann did.",))
    found = sweep(model, [example], [0, 4], tokens=["own", "other"], max_new_tokens=4)
    expected = model.answer("Who?", ["Ann did."], num_tokens=4, tokens="other", max_new_tokens=4)
    assert [(run.k, run.tokens) for run in found.runs] == [(0, None), (4, "own"), (4, "other")]
    assert found.runs[2].answers[0].text == expected


def test_merged_sweeps(model: SpringModel) -> None:
    examples = [RagExample(q, ("Rome",), tuple(FACTS)) for q in QUESTIONS]
    whole = sweep(model, examples, [0, 6], max_new_tokens=4, timed=9)
    parts = [sweep(model, part, [0, 6], max_new_tokens=4, timed=9) for part in (examples[:1], examples[1:])]
    joined = merged(parts)
    assert [run.answers for run in joined.all_runs] == [run.answers for run in whole.all_runs]
    speed = joined.runs[0].answers_per_second
    assert speed is not None
    assert (
        min(p.runs[0].answers_per_second or 0 for p in parts)
        <= speed
        <= max(p.runs[0].answers_per_second or 0 for p in parts)
    )


def test_papers_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script runs from end to end on a folder in FlashRAG's layout that carries passages."""
    scripts = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(scripts)
    spec = importlib.util.spec_from_file_location("paper", scripts / "paper.py")
    assert spec is not None
    assert spec.loader is not None
    paper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paper)
    monkeypatch.setattr(sys.modules["measure"], "RESULTS", folder / "results")
    sets = folder / "sets" / "hotpotqa"
    sets.mkdir(parents=True)
    lines = [json.loads(line) for line in (folder / "nq" / "test.jsonl").read_text().splitlines()]
    (sets / "dev.jsonl").write_text("\n".join(json.dumps({**line, "ret_passages": FACTS}) for line in lines))
    arguments = [
        "--backbone",
        folder / "backbone",
        "--tokens",
        folder / "six",
        "--dataset",
        sets,
        "--split",
        "dev",
        "--passages",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", ["paper.py", *map(str, arguments)])
    paper.main()
    assert "| set | score | n | k = 0 | k = 6 | published |\n" in (printed := capsys.readouterr().out)
    assert printed.splitlines()[-1].startswith("| hotpotqa | F1 | 3 |")
    assert printed.splitlines()[-1].endswith("| 42.6 |")
    assert json.loads((folder / "results" / "paper.json").read_text())["results"][0]["n"] == 3


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_scores_are_shown_whatever_becomes_of_the_report(
    folder: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(ENOSPC, "No space left on device", str(tmp_path))

    arguments = ["--tokens", folder / "six", "--data", folder / "own.jsonl", "--k", "0,6", *options]
    for failure in (interrupt, full):
        monkeypatch.setattr("spring_rag.evaluation.pages.write_report", failure)
        result = CliRunner().invoke(app, [*map(str, arguments), "--report", str(tmp_path / "report")])
        assert result.exit_code != 0
        if options:
            assert [row["k"] for row in json.loads(result.stdout)["results"]] == [0, 6]
            assert json.loads(result.stdout)["report"] is None
        else:
            assert "k = 6 beside k = 0: exact match" in result.stdout
        assert isinstance(result.exception, OSError) == (failure is full)
    monkeypatch.undo()
    monkeypatch.setattr("spring_rag.evaluation.ability.plain_difference", interrupt)
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert "interrupted" in result.stderr
    assert result.stdout


def test_an_interrupted_run_shows_the_sets_that_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = []

    def once(*arguments: Any, **settings: Any) -> Any:
        swept.append(arguments)
        return sweep(*arguments, **settings) if len(swept) == 1 else interrupt()

    monkeypatch.setattr("spring_rag.evaluation.study.sweep", once)
    data = ["--data", folder / "own.jsonl", "--data", folder / "nq", "--instruction", ""]
    arguments = ["--tokens", folder / "six", *data, "--k", "0,6", "--json", "--max-new-tokens", "2"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert [part["name"] for part in json.loads(result.stdout)["datasets"]] == ["own"]
    assert "interrupted" in result.stderr
    assert result.exit_code != 0


def test_the_table_says_how_many_passages_it_is_for(folder: Path) -> None:
    arguments = ["--tokens", folder / "six", "--data", folder / "own.jsonl", "--k", "6", "--instruction", ""]
    assert "own: 3 questions, at most 2 passages each" in run(*arguments, "--passages", "1,2")
    assert "own: 3 questions, all passages" in run(*arguments)


def test_a_report_does_not_overwrite_its_questions(folder: Path, tmp_path: Path) -> None:
    questions = tmp_path / "answers.jsonl"
    questions.write_text((folder / "own.jsonl").read_text())
    arguments = ["--tokens", str(folder / "six"), "--data", str(questions), "--report", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert questions.read_text() == (folder / "own.jsonl").read_text()


def test_an_instruct_model_is_scored_in_a_chat(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "backbone", tmp_path / "backbone")
    (tmp_path / "backbone" / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}\nassistant:{% endfor %}"
    )
    data = ["--data", folder / "own.jsonl", "--instruction", "", "--json"]
    plain, chat, text = (
        json.loads(run("--model", tmp_path / "backbone", *data, "--report", tmp_path / str(i), *more))
        for i, more in enumerate(([], ["--chat"], ["--no-chat"]))
    )
    answers = [
        [
            json.loads(line)["answer"]
            for line in (tmp_path / str(i) / "answers.jsonl").read_text().splitlines()
        ]
        for i in range(3)
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]
    assert plain["results"][0]["n"] == chat["results"][0]["n"] == text["results"][0]["n"] == 3
