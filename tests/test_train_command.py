"""Test `spring-rag train`: killed, interrupted, resumed, refused, previewed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import cli_parts
import pytest
import torch
from backbone_parts import FAMILIES
from cli_parts import Done
from filelock import FileLock
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.tokens import VirtualTokens

MODULE = [sys.executable, "-m", "spring_rag"]
NAMES = ["Arlo", "Bina", "Cato", "Dora", "Egon", "Fina"]
PLACES = ["Rome", "Oslo", "Lima", "Bern", "Kyiv", "Doha"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A folder with `backbone` and `train.jsonl`."""
    folder = tmp_path_factory.mktemp("train")
    llama.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    rng = Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(60):
            name, place = f"{rng.choice(NAMES)} {number}", rng.choice(PLACES)
            passages = [f"{name} is in {place}.", f"{rng.choice(NAMES)} likes {rng.choice(PLACES)}."]
            record = {"question": f"Where is {name}?", "target": place, "ret_passages": passages}
            file.write(json.dumps(record) + "\n")
    return folder


def command(folder: Path, output: Path, *more: object, **options: object) -> list[str]:
    """A short run; options replace those given here, None leaves one out."""
    chosen = {
        "model": folder / "backbone",
        "data": folder / "train.jsonl",
        "output": output,
        "num-tokens": 6,
        "max-steps": 24,
        "save-steps": 4,
        "batch-size": 4,
        "max-length": 200,
        "learning-rate": 0.05,
    } | {name.replace("_", "-"): value for name, value in options.items()}
    words = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", value)]
    return [*MODULE, "train", *map(str, words), *map(str, more)]


def run(arguments: list[str]) -> Done:
    """The command in this process, where torch is loaded already."""
    return cli_parts.run(*arguments[len(MODULE) :])


def matrix(output: Path) -> torch.Tensor:
    return VirtualTokens.from_pretrained(output).matrix


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing stopped."""
    output = folder / "whole"
    done = run(command(folder, output, "--json", "--tensorboard", eval_share=0.1, patience=50))
    assert done.returncode == 0, done.stderr
    (folder / "whole.json").write_text(done.stdout)
    return output


def stopped(arguments: list[str], output: Path, number: int, after: int) -> subprocess.Popen[str]:
    """The process, sent the signal once there is the checkpoint of step `after`."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (output / "checkpoints" / f"checkpoint-{after}" / "trainer_state.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    process.wait(timeout=60)
    return process


def test_killed_run_resumes_to_the_same_bits(folder: Path, whole: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path, eval_share=0.1, patience=50)
    assert stopped(arguments, tmp_path, signal.SIGKILL, 8).returncode == -signal.SIGKILL
    assert not (tmp_path / "config.json").exists()
    # As if the kill had come while a checkpoint was being written.
    half = tmp_path / "checkpoints" / "checkpoint-23"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    anew = run(arguments)
    assert anew.returncode == 1
    assert "stopped at step" in anew.stderr
    assert "--resume" in anew.stderr

    resumed = run([*arguments, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert torch.equal(matrix(tmp_path), matrix(whole))


def test_interrupted_run_saves_says_so_and_resumes_to_the_same_bits(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = command(folder, tmp_path, eval_share=0.1, patience=50)
    process = stopped(arguments, tmp_path, signal.SIGINT, 4)
    assert process.stdout is not None
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.returncode == 130, said
    assert process.stdout.read() == ""
    assert "Traceback" not in said
    assert "of 24; the checkpoint is in" in said
    assert "--resume" in said

    resumed = run([*arguments, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert torch.equal(matrix(tmp_path), matrix(whole))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.04}, "recipe.learning_rate was 0.05 and is now 0.04"),
        ({"data": "other.jsonl"}, "data.digest was"),
        ({"dtype": "bfloat16"}, "backbone.dtype was"),
        ({"eval_share": None}, "evaluation was"),
    ],
)
def test_resuming_under_other_conditions_is_refused(
    change: dict[str, Any], said: str, folder: Path, whole: Path
) -> None:
    if "data" in change:
        lines = (folder / "train.jsonl").read_text().replace("Where is", "Where now is")
        (folder / "other.jsonl").write_text(lines)
        change = {"data": folder / "other.jsonl"}
    before = matrix(whole)
    done = run(command(folder, whole, "--resume", **{"eval_share": 0.1, "patience": 50} | change))
    if "eval_share" in change:
        # Without held-out examples there is no patience either: another error comes first.
        done = run(command(folder, whole, "--resume"))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert torch.equal(matrix(whole), before)


def test_result_says_how_the_run_went(folder: Path, whole: Path) -> None:
    result = json.loads((folder / "whole.json").read_text())
    training = VirtualTokens.from_pretrained(whole).training
    assert training is not None
    assert result["kept_step"] == training["kept_step"]
    assert result["evaluation"].keys() >= {"eval_loss", "eval_f1", "eval_exact_match_k1", "eval_f1_k6"}
    assert result["data"]["examples"] == 54
    assert list((whole / "logs").glob("events.out.tfevents.*"))
    kept = whole / "checkpoints" / f"checkpoint-{result['kept_step']}"
    state = json.loads((whole / "checkpoints" / "checkpoint-24" / "trainer_state.json").read_text())
    scores = {e["step"]: e["eval_f1"] for e in state["log_history"] if "eval_f1" in e}
    assert sorted(scores) == list(range(4, 25, 4))
    assert scores[result["kept_step"]] == max(scores.values())
    assert kept.is_dir()
    assert any(entry.get("tokens_per_second", 0) > 0 for entry in state["log_history"])


def test_finished_run_may_be_followed_by_another(folder: Path, tmp_path: Path) -> None:
    assert run(command(folder, tmp_path, max_steps=2)).returncode == 0
    done = run(command(folder, tmp_path, max_steps=3, num_tokens=2))
    assert done.returncode == 0, done.stderr
    assert len(VirtualTokens.from_pretrained(tmp_path)) == 2


def test_dry_run_shows_prompts_and_trains_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path / "none", "--dry-run", max_steps=None, epochs=2, max_length=60)
    done = run([*arguments, "--json"])
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["examples"], seen["looked_at"], seen["steps"]) == (60, 60, 30)
    assert seen["losing_passages"] > 0
    assert seen["longest"] <= 60
    assert len(seen["prompts"]) == 3
    prompt = seen["prompts"][0]
    assert prompt["text"].startswith("<s>")
    assert "⟨virtual tokens⟩Question: Where is" in prompt["text"]
    assert prompt["text"].endswith("</s>")
    assert not (tmp_path / "none").exists()
    printed = run(arguments).stdout
    assert prompt["text"] in printed
    assert "30 optimizer steps" in printed


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"patience": 2}, 1, "--eval-share"),
        ({"eval_share": 0.5, "eval_data": "x"}, 2, "exclude each other"),
        ({"eval_k": "1,x"}, 2, "isn't a list of whole numbers"),
        ({"eval_k": "7", "eval_share": 0.1}, 1, "choose from 0 to 6"),
        ({"eval_share": 0.001}, 1, "0 held out"),
        ({"model": "no/such-model"}, 1, "no/such-model"),
        ({"data": "absent.jsonl"}, 1, "absent.jsonl"),
        ({"init_text": ""}, 1, "no tokens"),
        ({"learning_rate": 1e38}, 1, "learning_rate = 1e+38; it must be at most 1e+30"),
    ],
)
def test_wrong_usage_is_one_line(
    options: dict[str, Any], code: int, said: str, folder: Path, tmp_path: Path
) -> None:
    done = run(command(folder, tmp_path, **options))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def wide(folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose rows have 64 numbers: bitsandbytes' 4-bit kernel for processors with AVX-512 takes no shorter ones."""
    config = FAMILIES["llama"]()
    config.hidden_size, config.head_dim, config.intermediate_size = 64, 16, 128
    wide = tmp_path_factory.mktemp("wide")
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    return wide


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_backbone(bits: str, folder: Path, wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = run(command(folder, tmp_path, model=wide, quantize=bits, max_steps=2))
    assert done.returncode == 0, done.stderr
    assert matrix(tmp_path).isfinite().all()


def test_training_goes_on_from_tokens(folder: Path, tmp_path: Path) -> None:
    first, second, wrong = tmp_path / "first", tmp_path / "second", tmp_path / "wrong"
    assert run(command(folder, first, max_steps=2)).returncode == 0
    begun = VirtualTokens.from_pretrained(first)
    still = {"max_steps": 1, "learning_rate": 1e-12, "num_tokens": 4}
    assert run(command(folder, second, init_tokens=first, **still)).returncode == 0
    assert torch.allclose(matrix(second), begun.matrix[:4], atol=1e-6)
    training = VirtualTokens.from_pretrained(second).training
    assert training is not None
    assert training["init_tokens"] == begun.digest
    done = run(command(folder, wrong, init_tokens=second, max_steps=1))
    assert done.returncode == 1
    assert "6 virtual tokens can't start from 4" in done.stderr
    done = run(command(folder, wrong, init_tokens=first, init_text="Be brief.", max_steps=1))
    assert done.returncode == 2
    assert not wrong.exists() or not any(wrong.glob("*.safetensors"))


def test_quantising_needs_its_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finder that knows no such package stands in for a machine without it."""

    class Without:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "bitsandbytes":
                msg = f"No module named {name!r}"
                raise ModuleNotFoundError(msg, name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    done = run(command(folder, tmp_path, quantize="4bit"))
    assert done.returncode == 1
    assert "spring-rag[quantize]" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("link", ["checkpoints/checkpoint-7", "checkpoints"])
def test_nothing_behind_a_link_is_deleted(link: str, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "checkpoint-3").mkdir(parents=True)
    (mine / "checkpoint-3" / "notes.txt").write_text("mine")
    output = tmp_path / "out"
    (output / link).parent.mkdir(parents=True)
    (output / link).symlink_to(mine)
    done = run(command(folder, output, max_steps=2))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{output / link} is a link" in done.stderr
    assert (mine / "checkpoint-3" / "notes.txt").read_text() == "mine"


def test_a_finished_run_asked_for_again_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path, max_steps=4)
    assert run(arguments).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = run(arguments)
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_checkpoints_of_the_run_before_stay_until_the_next_is_finished(folder: Path, tmp_path: Path) -> None:
    assert run(command(folder, tmp_path, max_steps=4)).returncode == 0
    kept = {path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")}
    assert kept
    failed = run(command(folder, tmp_path, max_steps=4, learning_rate=1e30))
    assert failed.returncode == 1
    assert {path.name for path in (tmp_path / "checkpoints" / "before").iterdir()} == kept


def test_two_runs_in_one_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with FileLock(tmp_path / "checkpoints" / ".lock"):
        done = run(command(folder, tmp_path, max_steps=1))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"another run is training in {tmp_path}" in done.stderr
    assert run(command(folder, tmp_path, max_steps=1)).returncode == 0


@pytest.mark.parametrize(("rate", "steps"), [(1e30, 3), (1e30, 12)])
def test_numbers_that_are_none_any_more_are_not_saved(
    rate: float, steps: int, folder: Path, tmp_path: Path
) -> None:
    done = run(command(folder, tmp_path, learning_rate=rate, max_steps=steps, warmup=0))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "lower the learning rate" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "virtual_tokens.safetensors").exists()


def test_a_backbone_of_nan(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    shutil.copytree(folder / "backbone", tmp_path / "backbone")
    for weight in (model.model.norm.weight, model.get_input_embeddings().weight):
        with torch.no_grad():
            weight.fill_(float("nan"))
        model.save_pretrained(tmp_path / "backbone")
        done = run(command(folder, tmp_path / "out", model=tmp_path / "backbone", max_steps=2))
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "finite" in done.stderr.splitlines()[-1]
        assert "unexpected" not in done.stderr


def test_examples_without_room_are_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines()
    over = json.dumps(
        {"question": "Where is " + "very " * 300 + "far?", "target": "Rome", "ret_passages": ["a"]}
    )
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join([lines[0], "", over, *lines[1:], "{bad"]))
    refused = run(command(folder, tmp_path / "out", data=data, max_steps=1))
    assert refused.returncode == 1
    assert "not JSON" in refused.stderr
    data.write_text("\n".join([lines[0], "", over, *lines[1:]]))
    refused = run(command(folder, tmp_path / "out", data=data, max_steps=1))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "1 bad line;" in refused.stderr
    assert "line 3: question and answer are too long for max_length = 200" in refused.stderr
    skipped = run(command(folder, tmp_path / "out", "--skip-bad", "--json", data=data, max_steps=1))
    assert skipped.returncode == 0, skipped.stderr
    assert "1 bad line skipped, 60 examples kept" in skipped.stderr
    assert json.loads(skipped.stdout)["data"]["examples"] == 60
    held = run(command(folder, tmp_path / "held", eval_data=data, max_steps=1))
    assert "line 3: question and answer" in held.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    import resource

    arguments = command(folder, tmp_path, max_steps=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Room for what describes the run, not for a checkpoint.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        done = run(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "unexpected" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "can't be written" in last or last.startswith("error: File too large: ")
    assert str(tmp_path) in last
