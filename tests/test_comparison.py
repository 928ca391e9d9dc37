"""The comparison of ways to train, from end to end on a tiny backbone; and its stand-in for PEFT's prompt tuning against PEFT itself."""

import copy
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import peft
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.backends.local import LocalBackend
from spring_rag.demo import paths
from spring_rag.encoding import encode
from spring_rag.examples import load_examples
from spring_rag.prompt import RagPrompt
from spring_rag.tokens import BackboneRecord, VirtualTokens

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("comparison", SCRIPTS / "comparison.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(
    comparison: ModuleType,
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    make_tokens: Callable[..., VirtualTokens],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    model = build_model("llama", tied=False)
    model.save_pretrained(tmp_path / "backbone")
    copy.deepcopy(tokenizer).save_pretrained(tmp_path / "backbone")
    make_tokens(50, backbone=BackboneRecord.of(model)).save_pretrained(tmp_path / "shipped")
    monkeypatch.setattr(paths, "BACKBONE", tmp_path / "backbone")
    monkeypatch.setattr(paths, "TOKENS", tmp_path / "shipped")
    small = replace(comparison.RECIPE, max_steps=2, batch_size=2, num_tokens=10, max_length=200)
    monkeypatch.setattr(comparison, "RECIPE", small)
    monkeypatch.setattr(comparison, "STEPS", 2)
    monkeypatch.setattr(comparison, "KS", (1, 10))
    monkeypatch.setattr(comparison, "NEW_TOKENS", 4)
    monkeypatch.setattr(comparison, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("measure.RESULTS", tmp_path / "results")
    lines = [
        {"question": f"Who is {i}?", "target": "Ann", "ret_passages": ["Ann is.", f"Bo {i}."]}
        for i in range(5)
    ]
    lines.append({"question": "Who?", "target": "not stated", "ret_passages": ["Bo is."]})
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_every_stage(comparison: ModuleType, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["comparison.py", "--work", str(work)])
    comparison.main()
    found = json.loads((work / "results" / "comparison.json").read_text())
    ways = {row["way"]: row for row in found["results"]}
    assert len(ways) == 8
    assert ways["virtual tokens, k = 10"]["training"]["parameters"] == 10 * 32
    assert ways["PEFT prompt tuning, 10 tokens in front"]["training"]["parameters"] == 10 * 32
    assert found["largest_difference_of_logits_at_k_0"] == 0.0
    answers = [
        json.loads(line) for line in (work / "results" / "comparison-answers.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 6
    assert all(set(one["answers"]) == set(ways) for one in answers)


def test_the_prefix_answers_as_in_peft(comparison: ModuleType, work: Path) -> None:
    comparison.train_prefix(work)
    examples = load_examples(work / "test.jsonl").examples
    backend = LocalBackend.from_pretrained(work / "backbone")
    theirs = peft.PeftModel.from_pretrained(backend.hf_model, work / "prefix").eval()
    for example, ours in zip(examples, comparison.answer_prefix(work, examples), strict=True):
        ids = torch.tensor([encode(RagPrompt(example.question, example.passages), backend.tokenizer).ids])
        made = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=2,
        )
        text = backend.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert ours.text == text.strip()
