"""Test the benchmark on real questions, from end to end on a tiny backbone with made-up questions, and compare its answers with PEFT's own."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import encode
from spring_rag.prompt import RagPrompt
from spring_rag.training import engine
from spring_rag.training.objective import objectives

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
PEFT_WAYS = ("prompt-tuning", "prefix-tuning", "lora")
WAYS = ("plain", "words", *PEFT_WAYS, "tokens")


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import real_qa
        from real_qa_parts import answer, report, train

        yield SimpleNamespace(
            main=real_qa.main, recipe=real_qa.RECIPE, answer=answer, report=report, train=train
        )
        for name in ("measure", "real_data", "real_qa", "real_qa_parts"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("real_qa")
    model = build_model("llama", tied=False)
    model.config.max_position_embeddings = 8192
    model.save_pretrained(folder / "backbone")
    copy.deepcopy(tokenizer).save_pretrained(folder / "backbone")
    lines = [
        {
            "id": f"q{i}",
            "question": f"Who is number {i}?",
            "golden_answers": ["Ann"] if i else ["Zoe"],
            "ret_passages": ["Ann is.", f"Bo is {i * '1'}.", "Cy.", "Di.", "Ed.", "Flo."],
        }
        for i in range(6)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def run(parts: SimpleNamespace, folder: Path) -> Callable[..., None]:
    def run(stage: str, *words: object, work: str = "work") -> None:
        options = [
            "--model",
            folder / "backbone",
            "--work",
            folder / work,
            "--results",
            folder / "results" / "real_qa",
        ]
        parts.main([stage, *map(str, [*options, "--dtype", "float32", *words])])

    return run


@pytest.fixture(scope="module")
def train(run: Callable[..., None], folder: Path) -> Callable[..., Path]:
    def train(way: str, work: str = "work") -> Path:
        data = (
            "--data",
            folder / "questions.jsonl",
            "--batch-size",
            3,
            "--max-steps",
            3,
            "--max-length",
            400,
        )
        run("train", "--way", way, *data, "--save-steps", 2, "--micro-batch", 2, work=work)
        return folder / work / "backbone" / way

    return train


@pytest.fixture(scope="module")
def trained(train: Callable[..., Path]) -> dict[str, Path]:
    return {way: train(way) for way in (*PEFT_WAYS, "tokens")}


def test_every_stage(
    run: Callable[..., None], folder: Path, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--questions", folder / "questions.jsonl")
    run("words", *asked, "--limit", 2)
    for way in WAYS:
        for data in ("nq-test", "nq-test-missing"):
            run("answer", "--way", way, "--data", data, *asked, "--limit", 5)
    unfinished = folder / "unfinished" / "backbone" / "lora"
    unfinished.mkdir(parents=True)
    run("time", *asked, "--limit", 1, "--tokens", trained["tokens"], work="unfinished")
    times = folder / "results" / "real_qa" / "times" / "backbone.jsonl"
    assert not {json.loads(line)["way"] for line in _lines(times)} & set(PEFT_WAYS)
    run("time", *asked, "--limit", 1)
    files = [f"{data}={folder / 'questions.jsonl'}" for data in ("nq-test", "nq-test-missing")]
    run("report", "--data-files", *files)

    found = json.loads((folder / "results" / "real_qa.json").read_text())["backbone"]
    rows = {row["way"]: row for row in found["data"]["nq-test"]["rows"]}
    assert {"plain", "words", *PEFT_WAYS, "tokens-k1", "tokens-k50"} <= set(rows)
    assert found["data"]["nq-test"]["n"] == 5
    assert found["data"]["nq-test-missing"]["n"] == 4 + ("q0" not in _ids(folder, "nq-test"))
    assert all(0 <= row["exact_match"] <= row["f1"] <= 1 for row in rows.values())
    assert "f1_gain_over_words" in rows["tokens-k50"]
    assert set(found["seconds_per_answer"]) == set(rows)
    assert {one["steps"] for one in found["training"].values()} == {3}
    assert len({json.dumps(one["data"]) for one in found["training"].values()}) == 1
    assert found["training"]["tokens"]["parameters"] == 50 * 32
    assert found["training"]["prompt-tuning"]["parameters"] == 50 * 32
    assert (
        found["training"]["prefix-tuning"]["parameters"] == 50 * 2 * 2 * 16
    )  # layers, keys and values, width
    assert "| tokens-k50 |" in capsys.readouterr().out

    file = folder / "results" / "real_qa" / "answers" / "backbone-nq-test-lora.jsonl"
    assert "Ann is" not in file.read_text()
    before = _lines(file)
    file.write_text("\n".join(before[:3]) + '\n{"id": "to')
    run("answer", "--way", "lora", "--data", "nq-test", *asked)
    after = _lines(file)
    assert after[:3] == before[:3]
    assert sorted(json.loads(line)["id"] for line in after) == [f"q{i}" for i in range(6)]
    assert set(before) <= set(after)


def _ids(folder: Path, data: str) -> set[str]:
    lines = _lines(folder / "results" / "real_qa" / "answers" / f"backbone-{data}-plain.jsonl")
    return {json.loads(line)["id"] for line in lines}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


@pytest.mark.parametrize("way", PEFT_WAYS)
def test_training_goes_on_where_it_was_cut_short(
    parts: SimpleNamespace,
    train: Callable[..., Path],
    trained: dict[str, Path],
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backward, calls = parts.train._backward, []

    def failing(*args: object) -> float:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return backward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts.train, "_backward", failing)
        with pytest.raises(KeyboardInterrupt):
            train(way, work="resumed")
    resumed = load_file(train(way, work="resumed") / "adapter_model.safetensors")
    for name, tensor in load_file(trained[way] / "adapter_model.safetensors").items():
        assert torch.equal(resumed[name], tensor)


def test_a_checkpoint_of_another_run_is_refused(
    parts: SimpleNamespace, run: Callable[..., None], train: Callable[..., Path], folder: Path
) -> None:
    run_folder = folder / "other" / "backbone" / "lora"
    run_folder.mkdir(parents=True)
    torch.save({"settings": {}}, run_folder / parts.train.STATE)
    with pytest.raises(SystemExit, match="other data or settings"):
        train("lora", work="other")
    shutil.rmtree(folder / "other")


@pytest.mark.parametrize("way", PEFT_WAYS)
def test_answers_are_those_of_peft_one_by_one(
    parts: SimpleNamespace, folder: Path, trained: dict[str, Path], way: str
) -> None:
    asked = [one.example for one in parts.answer.questions(folder / "questions.jsonl", "nq-test", None)]
    # Of different lengths, so that a batch has padding.
    asked = [replace(one, passages=one.passages * (1 + 3 * number)) for number, one in enumerate(asked[:3])]
    batched = parts.answer.answerer(way, str(folder / "backbone"), "float32", trained[way], None)(
        asked, [way]
    )[way]
    backend = LocalBackend.from_pretrained(folder / "backbone")
    theirs = peft.PeftModel.from_pretrained(backend.hf_model, trained[way]).eval()
    for example, ours in zip(asked, batched, strict=True):
        ids = torch.tensor([encode(RagPrompt(example.question, example.passages), backend.tokenizer).ids])
        made = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=2,
        )
        text = backend.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert ours.text == text.strip()


@pytest.mark.parametrize("way", PEFT_WAYS)
def test_the_loss_is_that_of_peft_and_its_own_labels(parts: SimpleNamespace, folder: Path, way: str) -> None:
    recipe = replace(parts.recipe, max_steps=1, batch_size=3, max_length=400)
    backend = LocalBackend.from_pretrained(folder / "backbone")
    examples = [one.example for one in parts.answer.questions(folder / "questions.jsonl", "nq-test", None)]
    items = parts.train.RagExamples(examples, backend.tokenizer, recipe)
    model = parts.train.PEFT_WAYS[way].make(backend, recipe).eval()
    batch = next(parts.train._batches(items, recipe, 0))
    found = parts.train.whole_sequence_loss(model, batch, parts.train.PEFT_WAYS[way].columns(recipe))
    total, count = 0.0, 0
    for encoded, target in batch:
        ids = torch.tensor([[*encoded.ids, *target]])
        labels = torch.tensor([[-100] * len(encoded.ids) + list(target)])
        loss = model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids)).loss
        total, count = total + loss.item() * len(target), count + len(target)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_our_tokens_are_trained_on_the_same_batches(
    parts: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = replace(parts.recipe, max_steps=5, batch_size=3, max_length=400)
    backend = LocalBackend.from_pretrained(folder / "backbone")
    examples = [one.example for one in parts.answer.questions(folder / "questions.jsonl", "nq-test", None)]
    items = parts.train.RagExamples(examples, backend.tokenizer, recipe)
    seen = []

    def recording(hf_model: object, batch: list[object], *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(batch)
        return objectives(hf_model, batch, *args, **kwargs)

    monkeypatch.setattr(engine, "objectives", recording)
    parts.train.train_tokens(backend.hf_model, backend.tokenizer, examples, recipe, tmp_path / "tokens")
    assert seen == list(islice(parts.train._batches(items, recipe, 0), 5))
    assert seen[3:] == list(islice(parts.train._batches(items, recipe, 3), 2))


def test_passages_that_hold_an_answer_are_left_out(parts: SimpleNamespace, folder: Path) -> None:
    file = folder / "questions.jsonl"
    asked = parts.answer.questions(file, "nq-test", None)
    without = parts.answer.questions(file, "nq-test-missing", None)
    assert parts.answer.questions(file, "nq-test", 3) == asked[:3]
    assert {one.id for one in without} == {one.id for one in asked} - {"q0"}
    assert all(one.example.answers == ("not stated",) for one in without)
    assert all(
        one.example.passages[-1] == "Flo." and "Ann is." not in one.example.passages for one in without
    )


def test_files_of_questions_are_made_of_the_public_data(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {
        "nq/passages-train.jsonl": [{"id": "t0", "title": "Mole", "text": "Moles dig."}],
        "nq/passages-dev.jsonl": [{"id": "d0", "title": "Bee", "text": "Bees make honey."}],
        "nq/passages-test.jsonl": [{"id": "e0", "title": "Owl", "text": "Owls hunt at night."}],
        "nq/train.jsonl": [],
        "nq/dev.jsonl": [{"id": "1", "question": "what do bees make", "golden_answers": ["honey"]}],
        "nq/test.jsonl": [{"id": "2", "question": "when do owls hunt", "golden_answers": ["at night"]}],
        "popqa/passages.jsonl": [
            {"id": "p0", "title": "Ann", "text": "Ann sings."},
            {"id": "p1", "title": "Bo", "text": "Bo."},
        ],
        "popqa/questions.jsonl": [
            {
                "id": "3",
                "question": "What does Ann do?",
                "golden_answers": ["sings"],
                "passages": ["p1", "p0"],
            }
        ],
    }
    for name, lines in written.items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    paragraph = {
        "context": "Foxes live in dens.",
        "qas": [{"id": "4", "question": "Where do foxes live?", "answers": [{"text": "in dens"}]}],
    }
    (tmp_path / "data" / "xquad").mkdir()
    (tmp_path / "data" / "xquad" / "xquad.en.json").write_text(
        json.dumps({"data": [{"title": "Red_fox", "paragraphs": [paragraph]}]})
    )
    monkeypatch.setenv("SPRING_RAG_DATA", str(tmp_path / "data"))
    parts.main(["questions", "--output", str(tmp_path / "out")])

    made = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}
    assert {name: (one["id"], one["ret_passages"][0]) for name, one in made.items()} == {
        "nq-dev": ("1", "Bee\nBees make honey."),
        "nq-test": ("2", "Owl\nOwls hunt at night."),
        "xquad": ("4", "Red fox\nFoxes live in dens."),
        "popqa": ("3", "Bo\nBo."),
    }
    assert made["popqa"]["ret_passages"] == ["Bo\nBo.", "Ann\nAnn sings."]
    assert made["xquad"]["golden_answers"] == ["in dens"]
    assert set(made["nq-dev"]["ret_passages"]) >= {"Mole\nMoles dig."}, "one index of all passages"


def test_questions_need_to_know_where_the_data_is(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPRING_RAG_DATA", raising=False)
    with pytest.raises(SystemExit, match="SPRING_RAG_DATA"):
        parts.main(["questions"])
