"""Test the progress of long commands: plain lines if standard error is no terminal."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerControl, TrainerState

from spring_rag.cli.console import Progress
from spring_rag.training.progress import ProgressReport

WORK = """
import time
from spring_rag.cli.console import Progress
with Progress("answering") as report:
    for done in range(5):
        report(done, 600)
        time.sleep(0.2)
"""


def test_lines_where_there_is_no_terminal() -> None:
    environment = os.environ | {"SPRING_RAG_PROGRESS_SECONDS": "0.3"}
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert lines[0].startswith("answering: ")
    assert lines[-1].startswith("answering: 4 of 600 (")
    assert lines[-1].endswith(" min left)")
    assert done.stdout == ""


def test_a_bar_in_a_terminal() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"SPRING_RAG_PROGRESS_SECONDS": "0.1", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", WORK], env=environment, stderr=follower, check=True)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "4/600" in shown
    assert "of 600" not in shown


def test_a_command_says_where_it_is(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    build_model("llama").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    rows = [{"question": f"Who is {i}?", "target": "Ann", "ret_passages": ["Ann did."]} for i in range(64)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--model", tmp_path / "backbone", "--data", tmp_path / "own.jsonl", "--json"]
    train = [
        "train",
        *common,
        "--output",
        tmp_path / "tokens",
        "-n",
        "2",
        "--epochs",
        "3",
        "--max-length",
        "200",
    ]
    environment = os.environ | {"SPRING_RAG_PROGRESS_SECONDS": "0.02"}
    for command, word in ((["eval", *common, "--batch-size", "4"], "answering"), (train, "training")):
        done = subprocess.run(
            [sys.executable, "-m", "spring_rag", *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"{word}: " in done.stderr
        json.loads(done.stdout)


def test_time_left_is_told_from_what_this_run_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = Progress("training")
    report.tell()
    report.resume(100, 200)
    report.tell()
    for seconds, done in ((60, 101), (120, 150), (200, 199), (7300, 120), (7400, 200)):
        now[0] = seconds
        report(done, 200, "loss 1.0")
        report.tell()
    assert capsys.readouterr().err.splitlines() == [
        "training …",
        "training: 100 of 200",
        "training: 101 of 200 (1 h 39 min left): loss 1.0",
        "training: 150 of 200 (2 min left): loss 1.0",
        "training: 199 of 200 (less than a minute left): loss 1.0",
        "training: 120 of 200 (8 h 7 min left): loss 1.0",
        "training: 200 of 200: loss 1.0",
    ]


def test_other_processes_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPRING_RAG_PROGRESS_SECONDS", "0.01")
    with Progress("training", shown=False) as report:
        report(1, 2)
        report.tell()
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_an_interval_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("often", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("SPRING_RAG_PROGRESS_SECONDS", wrong)
        with pytest.raises(typer.BadParameter, match="positive number of seconds"):
            Progress("training")


def test_held_out_scores_get_a_line_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    state = TrainerState(global_step=10, max_steps=40)
    callback = ProgressReport(Progress("training"))
    callback.on_train_begin(None, state, TrainerControl())
    callback.on_log(None, state, TrainerControl(), {"loss": 2.0})
    callback.on_log(None, state, TrainerControl(), {"eval_loss": 1.5, "eval_f1": 0.25})
    line = "training: 10 of 40: loss 2.0000  held-out loss 1.5000  held-out F1 25.0%\n"
    assert capsys.readouterr().err == line
