"""Test the recipe, and a real, short training run on a tiny random Llama."""

import copy
import json
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from random import Random

import pytest
import torch
from backbone_parts import MODEL_VOCAB_SIZE
from objective_parts import LONG_ROPE, model_of
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spring_rag.data.examples import RagExample, digest
from spring_rag.encoding import encode, encode_target
from spring_rag.errors import DataError, TrainingError
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.templates import template_digest
from spring_rag.tokens import VirtualTokens
from spring_rag.training import RagExamples, TrainingRecipe, initial_rows, objective, train_tokens
from spring_rag.training.heldout import HeldOut
from spring_rag.training.trainer import _with_date

NAMES = ["Arlo", "Bina", "Cato", "Dora", "Egon", "Fina"]
PLACES = ["Rome", "Oslo", "Lima", "Bern", "Kyiv", "Doha"]


@pytest.fixture(scope="module")
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The shared tokenizer with a chat template."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    return made


@pytest.fixture
def backbone(build_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """A fresh tiny Llama as a careless caller has it: trainable, in training mode."""
    return build_model("llama").train()


def examples(count: int = 20) -> list[RagExample]:
    rng = Random(0)
    made = []
    for _ in range(count):
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        others = tuple(f"{rng.choice(NAMES)} likes {rng.choice(PLACES)}." for _ in range(3))
        made.append(RagExample(f"Where is {name}?", (place,), (f"{name} is in {place}.", *others)))
    return made


RECIPE = TrainingRecipe(
    num_tokens=6,
    learning_rate=0.05,
    max_steps=24,
    batch_size=4,
    max_length=200,
    max_passages=3,
    chat=0.3,
    seed=5,
)


def mean_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, matrix: torch.Tensor) -> float:
    rows = [
        (
            encode(RagPrompt(question=e.question, passages=e.passages[:2]), tokenizer),
            encode_target(e.answers[0], tokenizer),
        )
        for e in examples()
    ]
    return objective(model, rows, matrix, len(matrix)).item()


def test_training_lowers_the_loss_and_leaves_the_backbone_alone(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    start = initial_rows(backbone, chatty, RECIPE.init_text, RECIPE.num_tokens)
    tokens = train_tokens(backbone, chatty, examples(), replace(RECIPE, max_steps=60), tmp_path)

    assert mean_loss(backbone, chatty, tokens.matrix) < 0.9 * mean_loss(backbone, chatty, start)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert backbone.training


def test_artifact_says_how_it_was_made(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_steps=2, template=RagTemplate(question="Q: {question}\nA:"))
    tokens = train_tokens(backbone, chatty, examples(), recipe, tmp_path)
    saved = VirtualTokens.from_pretrained(tmp_path)
    assert torch.equal(saved.matrix, tokens.matrix)
    assert saved.template == recipe.template
    assert saved.backbone is not None
    assert saved.backbone.hidden_size == 32
    assert saved.training is not None
    assert saved.training["recipe"]["learning_rate"] == 0.05
    assert saved.training["steps"] == 2
    assert saved.training["data"] == {"examples": 20, "digest": digest(examples())}


def test_same_seed_same_tokens(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_steps=6)
    first, second, other = (
        train_tokens(backbone, chatty, examples(), replace(recipe, seed=seed), tmp_path / str(number)).matrix
        for number, seed in enumerate([5, 5, 6])
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_resumed_run_reaches_the_same_tokens_with_small_checkpoints(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class Killed(TrainerCallback):
        def on_save(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            if state.global_step == 8:
                raise KeyboardInterrupt

    recipe = replace(RECIPE, max_steps=13)
    whole = train_tokens(backbone, chatty, examples(), recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_tokens(
            backbone, chatty, examples(), recipe, tmp_path / "cut", save_steps=4, callbacks=[Killed()]
        )
    checkpoint = tmp_path / "cut" / "checkpoints" / "checkpoint-8"
    assert list(load_file(checkpoint / "model.safetensors")) == ["matrix"]
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 100_000
    resumed = train_tokens(backbone, chatty, examples(), recipe, tmp_path / "cut", resume=True)
    assert torch.equal(resumed.matrix, whole.matrix)


@pytest.mark.parametrize("save_steps", [5, 500])
def test_resuming_a_finished_run_changes_nothing(
    save_steps: int, backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # With a constant rate, a step too many would show.
    recipe = replace(RECIPE, max_steps=13, scheduler="constant_with_warmup")
    done = train_tokens(backbone, chatty, examples(), recipe, tmp_path, save_steps=save_steps)
    artifact = (tmp_path / "config.json").read_bytes()
    again = train_tokens(backbone, chatty, examples(), recipe, tmp_path, save_steps=save_steps, resume=True)
    assert torch.equal(again.matrix, done.matrix)
    assert (tmp_path / "config.json").read_bytes() == artifact

    # As if it had been killed after its last checkpoint, before the artifact was written.
    (tmp_path / "virtual_tokens.safetensors").unlink()
    run = tmp_path / "checkpoints" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "finished": False}))
    resumed = train_tokens(backbone, chatty, examples(), recipe, tmp_path, save_steps=save_steps, resume=True)
    assert torch.equal(resumed.matrix, done.matrix)
    assert resumed.training is not None
    assert resumed.training["steps"] == 13


def test_one_process_takes_one_device(
    backbone: PreTrainedModel,
    chatty: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a machine with two GPUs, which can't be had here: what transformers finds there is put in its place."""
    found = TrainingArguments._setup_devices.func  # type: ignore[attr-defined]

    def two_devices(arguments: TrainingArguments) -> torch.device:
        device: torch.device = found(arguments)
        arguments._n_gpu = 2
        return device

    once = cached_property(two_devices)
    once.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", once)
    sizes = []

    class Sizes(TrainerCallback):
        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            sizes.append((args.train_batch_size, args.n_gpu))

    train_tokens(backbone, chatty, examples(), replace(RECIPE, max_steps=2), tmp_path, callbacks=[Sizes()])
    assert sizes == [(RECIPE.batch_size, 1)]


def test_held_out_answers_may_say_that_there_is_none(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast
) -> None:
    example = RagExample("Who?", ("Ada",), ("Nothing.", "Nothing else.", "Nor here.", "It was Ada."))
    for unanswerable, accepted in ((0.0, ("Ada",)), (0.3, ("not stated",))):
        recipe = replace(RECIPE, unanswerable=unanswerable, max_passages=3)
        assert HeldOut(backbone, chatty, [example], recipe)._accepted == [accepted]


def test_held_out_question_that_leaves_no_room_for_an_answer_is_found_first(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, max_length=256, chat=0.0)  # all that the backbone reads
    question = "Who? "
    while True:
        longer = RagExample(question + "o", ("Ada",))
        try:
            RagExamples([longer], chatty, recipe).check()
        except DataError:
            break
        question += "o"
    train = replace(recipe, max_steps=1)
    with pytest.raises(DataError, match="held-out question is too long"):
        train_tokens(backbone, chatty, examples(), train, tmp_path, [RagExample(question, ("Ada",))])
    assert not list(tmp_path.iterdir())


def test_context_that_changes_with_what_follows_is_trained_over_the_whole_sequence(
    chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = model_of("phi3", **LONG_ROPE, vocab_size=MODEL_VOCAB_SIZE)
    with pytest.warns(UserWarning, match=r"Phi3ForCausalLM trains slower than others from \d\d tokens on"):
        tokens = train_tokens(
            model, chatty, examples(), replace(RECIPE, max_length=120, max_steps=2), tmp_path
        )
    assert tokens.matrix.isfinite().all()


def test_what_inference_reads_can_be_trained(
    build_model: Callable[..., PreTrainedModel], chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = build_model("llama")
    recipe = replace(RECIPE, max_length=300, max_steps=1)
    with pytest.raises(TrainingError, match="reads at most 256 tokens"):
        train_tokens(model, chatty, examples(), recipe, tmp_path)
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "rope_theta": 1e4}
    model.config.rope_parameters = yarn
    assert len(train_tokens(model, chatty, examples(), recipe, tmp_path)) == RECIPE.num_tokens


def test_bfloat16_and_sandwich_and_evaluation(
    backbone: PreTrainedModel,
    chatty: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(RECIPE, max_steps=4, precision="bfloat16", k_schedule="sandwich", accumulation=2)
    tokens = train_tokens(
        backbone.to(torch.bfloat16), chatty, examples(), recipe, tmp_path, examples(6), save_steps=2
    )
    assert tokens.matrix.dtype == torch.float32
    assert tokens.matrix.isfinite().all()
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [2, 4]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx512_f": False}, True),
        ({"architecture": "x86_64", "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_warned_of(
    backbone: PreTrainedModel,
    chatty: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    slow: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    recipe = replace(RECIPE, max_steps=1, precision="bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_tokens(backbone, chatty, examples(), recipe, tmp_path)
    assert any("no instructions for bfloat16" in str(each.message) for each in caught) == slow


def test_rows_start_as_the_table_rows_of_the_text(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast
) -> None:
    rows = initial_rows(backbone, chatty, "abc", 5)
    ids = [chatty.convert_tokens_to_ids(piece) for piece in "abcab"]
    assert torch.equal(rows, backbone.get_input_embeddings().weight[ids])
    with pytest.raises(TrainingError, match="no tokens"):
        initial_rows(backbone, chatty, "", 5)


def test_small_schedule_favours_small_ks_and_keeps_n() -> None:
    recipe, rng = TrainingRecipe(num_tokens=50, k_schedule="small"), Random(0)
    drawn = Counter(k for _ in range(4000) for k in recipe.draw_ks(rng))
    assert min(drawn) == 1
    assert max(drawn) == 50
    assert 0.22 < drawn[50] / 4000 < 0.30
    assert drawn[1] > 5 * drawn[10] > 0


def test_uniform_schedule_and_sandwich() -> None:
    rng = Random(0)
    uniform = Counter(
        k for _ in range(5000) for k in TrainingRecipe(num_tokens=5, k_schedule="uniform").draw_ks(rng)
    )
    assert sorted(uniform) == [1, 2, 3, 4, 5]
    assert max(uniform.values()) < 1.2 * min(uniform.values())
    for n, size in ((1, 1), (2, 2), (50, 3)):
        ks = TrainingRecipe(num_tokens=n, k_schedule="sandwich").draw_ks(rng)
        assert (ks[0], ks[-1], len(ks)) == (1, n, size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_tokens": 0},
        {"learning_rate": 0.0},
        {"chat": 1.5},
        {"min_passages": 4, "max_passages": 2},
        {"k_schedule": "random"},
        {"precision": "int8"},
        {"max_steps": 0},
    ],
)
def test_recipe_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        TrainingRecipe(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_said_first(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="no examples"):
        train_tokens(backbone, chatty, [], RECIPE, tmp_path)
    with pytest.raises(TrainingError, match="at most 256"):
        train_tokens(backbone, chatty, examples(), replace(RECIPE, max_length=300), tmp_path)
    with pytest.raises(DataError, match="too long for max_length"):
        train_tokens(backbone, chatty, [*examples(), RagExample("why " * 60, ("so",))], RECIPE, tmp_path)


def test_a_run_in_chats_keeps_one_date_and_records_it_with_the_chat_template(
    backbone: PreTrainedModel, chatty: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dated = copy.deepcopy(chatty)
    dated.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + str(chatty.chat_template)
    began = f"{datetime.now():%d %b %Y}"
    tokens = train_tokens(backbone, dated, examples(4), replace(RECIPE, max_steps=1, chat=1.0), tmp_path)
    assert tokens.chat_template == template_digest(dated)
    assert tokens.template is not None
    assert tokens.template.chat_template_kwargs == {"date_string": began}
    # Another day: the run goes on with its own date, and the date that someone gives wins.
    run = tmp_path / "checkpoints" / "run.json"
    run.write_text(run.read_text().replace(began, "26 Jul 2024"))
    recipe = replace(RECIPE, chat=1.0)
    assert _with_date(recipe, dated, run.parent).template.chat_template_kwargs == {
        "date_string": "26 Jul 2024"
    }
    given = replace(recipe, template=RagTemplate(chat_template_kwargs={"date_string": "1 May 2020"}))
    assert _with_date(given, dated, run.parent) == given
    for undated in (replace(RECIPE, chat=0.0), dated), (recipe, chatty):
        assert _with_date(*undated, run.parent) == undated[0]
